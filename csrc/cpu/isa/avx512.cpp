#include "cpu/kernels.h"

#if defined(__x86_64__)
#include "cpu/isa/avx512.h"
#include "cpu/kernels_impl.h"

namespace rnnext {

static bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

const InstructionSet avx512_set{"avx512",
                                &supported,
                                &avx512_bf16_kernels,
                                &avx512::table<float>,
                                &avx512::table<double>,
                                &avx512::bfloat16_weights};

}  // namespace rnnext

#include "cpu/isa/end.h"
#endif
