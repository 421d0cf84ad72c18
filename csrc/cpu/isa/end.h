// Ends what avx512.h and its like begin.
#ifdef RNNEXT_TARGET_PUSHED
#pragma clang attribute pop
#undef RNNEXT_TARGET_PUSHED
#endif
