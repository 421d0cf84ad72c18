#include "cpu/kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define RNNEXT_ISA avx512
#define RNNEXT_VECTOR_BYTES 64
#include "cpu/kernels_impl.h"

namespace rnnext {

static bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

const InstructionSet avx512_set{"avx512", &supported, true, &avx512::table<float>, &avx512::table<double>};

}  // namespace rnnext

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
