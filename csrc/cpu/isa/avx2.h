// Compiles what follows for AVX2 and FMA, up to end.h. See avx512.h.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#define RNNEXT_TARGET_PUSHED
#else
#pragma GCC target("avx2,fma")
#endif
#define RNNEXT_ISA avx2
#define RNNEXT_VECTOR_BYTES 32
