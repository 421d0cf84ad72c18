// Compiles what follows for AVX-512, up to end.h, in a namespace of its own. Headers of torch and of the C++ library go
// before it: the linker could pick a copy of their templates that is compiled for this set, on a machine that lacks it.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#define RNNEXT_TARGET_PUSHED
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#define RNNEXT_ISA avx512
#define RNNEXT_VECTOR_BYTES 64
