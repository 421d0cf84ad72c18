#include "cpu/kernels.h"

#include "cpu/isa/baseline.h"
#include "cpu/kernels_impl.h"

namespace rnnext {

static bool supported() {
  return true;
}

const InstructionSet baseline_set{
    "baseline", &supported, nullptr, &baseline::table<float>, &baseline::table<double>, &baseline::bfloat16_weights};

}  // namespace rnnext

#include "cpu/isa/end.h"
