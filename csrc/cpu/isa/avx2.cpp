#include "cpu/kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define RNNEXT_ISA avx2
#define RNNEXT_VECTOR_BYTES 32
#include "cpu/kernels_impl.h"

namespace rnnext {

static bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const InstructionSet avx2_set{"avx2", &supported, true, &avx2::table<float>, &avx2::table<double>};

}  // namespace rnnext

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
