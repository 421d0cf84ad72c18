// What every processor of the architecture has: SSE2 on x86-64, NEON on 64-bit ARM.
#include "cpu/kernels.h"

#define RNNEXT_ISA baseline
#define RNNEXT_VECTOR_BYTES 16
#include "cpu/kernels_impl.h"

namespace rnnext {

static bool supported() {
  return true;
}

const InstructionSet baseline_set{"baseline", &supported, false, &baseline::table<float>, &baseline::table<double>};

}  // namespace rnnext
