#include "cpu/kernels.h"

#if defined(__x86_64__)
#include "cpu/isa/avx512_bf16.h"

#include "cpu/simd.h"

#include "cpu/bfloat16.h"

namespace rnnext {

static bool supported() {
  return __builtin_cpu_supports("avx512bf16");
}

const BFloat16Kernels avx512_bf16_kernels{&supported,
                                          &avx512_bf16::gemm_pairs,
                                          &avx512_bf16::gemm_tn_pairs,
                                          &avx512_bf16::round_rows,
                                          &avx512_bf16::round_pair,
                                          &avx512_bf16::join_pair};

}  // namespace rnnext

#include "cpu/isa/end.h"
#endif
