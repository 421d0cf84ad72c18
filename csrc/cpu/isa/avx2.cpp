#include "cpu/kernels.h"

#if defined(__x86_64__)
#include "cpu/isa/avx2.h"
#include "cpu/kernels_impl.h"

namespace rnnext {

static bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const InstructionSet avx2_set{
    "avx2", &supported, nullptr, &avx2::table<float>, &avx2::table<double>, &avx2::bfloat16_weights};

}  // namespace rnnext

#include "cpu/isa/end.h"
#endif
