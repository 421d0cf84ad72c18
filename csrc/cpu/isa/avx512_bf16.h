// Compiles what follows for AVX-512 with its bfloat16 part, up to end.h. See avx512.h.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"))), \
                             apply_to = function)
#define RNNEXT_TARGET_PUSHED
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#endif
#define RNNEXT_ISA avx512_bf16
#define RNNEXT_VECTOR_BYTES 64
