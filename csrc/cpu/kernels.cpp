#include "cpu/kernels.h"

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>

namespace rnnext {

const InstructionSet* const kInstructionSets[] = {
#if defined(__x86_64__)
    &avx512_set, &avx2_set,
#endif
    &baseline_set};
const int kInstructionSetCount = std::size(kInstructionSets);

namespace {

const InstructionSet& choose() {
  const char* forced = std::getenv("RNNEXT_ISA");
  std::string known;
  for (const InstructionSet* set : kInstructionSets) {
    known += std::string(known.empty() ? "" : ", ") + set->name;
    if (forced && std::strcmp(forced, set->name) != 0) continue;
    if (set->supported()) return *set;
    if (forced) throw std::runtime_error(std::string("RNNEXT_ISA=") + forced + ": this processor lacks it");
  }
  throw std::runtime_error(std::string("RNNEXT_ISA=") + forced + " is not one of: " + known);
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet& set = choose();
  return set;
}

const BFloat16Kernels* bfloat16_kernels() {
  static const BFloat16Kernels* kernels = [] {
    const BFloat16Kernels* known = instruction_set().bfloat16;
    return known && known->supported() ? known : nullptr;
  }();
  return kernels;
}

const BFloat16Weights& bfloat16_weights() {
  return *instruction_set().bfloat16_weights;
}

template <>
const Kernels<float>& kernels<float>() {
  return *instruction_set().f32;
}

template <>
const Kernels<double>& kernels<double>() {
  return *instruction_set().f64;
}

}  // namespace rnnext
