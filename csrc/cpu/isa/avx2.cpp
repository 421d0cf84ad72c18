#include "cpu/kernels.h"

#if defined(__x86_64__)
#include "cpu/isa/avx2.h"
#include "cpu/kernels_impl.h"

namespace rnnext {

static bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_bfloat16() {
  return false;
}

const InstructionSet avx2_set{"avx2", &supported, true, &has_bfloat16, &avx2::table<float>, &avx2::table<double>};

}  // namespace rnnext

#include "cpu/isa/end.h"
#endif
