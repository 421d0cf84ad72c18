#include "cpu/kernels.h"

#include "cpu/isa/baseline.h"
#include "cpu/kernels_impl.h"

namespace rnnext {

static bool supported() {
  return true;
}

static bool has_bfloat16() {
  return false;
}

const InstructionSet baseline_set{
    "baseline", &supported, false, &has_bfloat16, &baseline::table<float>, &baseline::table<double>};

}  // namespace rnnext

#include "cpu/isa/end.h"
