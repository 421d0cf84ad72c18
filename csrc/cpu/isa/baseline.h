// What every processor of the architecture has: SSE2 on x86-64, NEON on 64-bit ARM. See avx512.h.
#define RNNEXT_ISA baseline
#define RNNEXT_VECTOR_BYTES 16
