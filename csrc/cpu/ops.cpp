// The ops on the CPU.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "cpu/pool.h"
#include "cpu/registry.h"
#include "cpu/scan.h"
#include "engine/ops.h"
#include "engine/planned.h"

namespace rnnext::cpu {
namespace {

struct Backend {
  // The products over a block's rows run at full speed, and its buffers stay in cache.
  static constexpr int64_t kBlockRows = 768;
  static constexpr bool kReadsBFloat16 = true;

  struct DeviceGuard {
    explicit DeviceGuard(const Tensor&) {}
  };

  static const CellShape& cell_named(std::string_view name) { return rnnext::cell_named(name); }

  template <class T>
  static void scan_forward(const std::vector<ScanForward<T>>& scans, bool apart) {
    each(scans, apart, [](const ScanForward<T>& scan) { cpu::scan_forward(scan); });
  }

  template <class T>
  static void scan_backward(const std::vector<ScanBackward<T>>& scans, bool apart) {
    each(scans, apart, [](const ScanBackward<T>& scan) { cpu::scan_backward(scan); });
  }

  static Tensor empty(at::IntArrayRef sizes, const Tensor& like) { return cpu::empty(sizes, like); }

  template <class T>
  static void dropout(int64_t first, int64_t count, const T* src, T* dst, int64_t seed, int64_t layer, double p) {
    constexpr int64_t grain = 4096;  // elements; a multiple of 4, as the generator makes four at a time
    at::parallel_for(0, (count + grain - 1) / grain, 4, [&](int64_t begin, int64_t end) {
      const int64_t offset = begin * grain;
      kernels<T>().dropout(first + offset, std::min(end * grain, count) - offset, src + offset, dst + offset, seed,
                           layer, p);
    });
  }

  static bool directions_apart(const Shape& shape, const Steps& steps, int64_t bytes) {
    return cpu::directions_apart(shape, steps, bytes, {available_threads(), caches()});
  }
  static bool layers_apart(const Shape& shape, const Steps& steps, int64_t bytes, int64_t layers) {
    return cpu::layers_apart(shape, steps, bytes, layers, {available_threads(), caches()});
  }

 private:
  template <class Scan, class Work>
  static void each(const std::vector<Scan>& scans, bool apart, Work work) {
    if (scans[0].steps.total() == 0) return;
    if (!apart) {
      for (const Scan& scan : scans) work(scan);
      return;
    }
    run_apart(static_cast<int>(scans.size()), [&](int64_t i) {
      try {
        work(scans[i]);
      } catch (...) {
        if (scans[i].links) scans[i].links->give_up();
        throw;
      }
    });
  }
};

// By the words of a number that no noise of a cell has.
Tensor dropout_mask(const Tensor& seed, int64_t rows, int64_t columns, int64_t place, double p, at::ScalarType dtype) {
  constexpr int64_t grain = 4096;  // elements; a multiple of 4, as the generator makes four at a time
  constexpr uint32_t number = kMaxNoise;
  TORCH_CHECK(p >= 0 && p <= 1, "rnnext: p is ", p, ", expected a probability");
  const Tensor mask = empty({rows, columns}, at::empty({0}, seed.options().dtype(dtype)));
  const auto value = static_cast<uint64_t>(seed.item<int64_t>());
  const Noise noise{Noise::kDropout, kHidden, false, p, 0};
  AT_DISPATCH_FLOATING_TYPES(dtype, "rnnext::dropout_mask", [&] {
    scalar_t* data = mask.data_ptr<scalar_t>();
    at::parallel_for(0, (mask.numel() + grain - 1) / grain, 4, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * grain, count = std::min(end * grain, mask.numel()) - first;
      kernels<scalar_t>().noise(noise, first, count, data + first, value, static_cast<uint32_t>(place), number);
    });
  });
  return mask;
}

std::vector<int64_t> cell_shape(std::string_view cell, at::IntArrayRef sizes) {
  const CellShape& shape = cell_named(base_name(cell));
  const Shape layout = shape_of(shape, 0, sizes);
  std::vector<int64_t> result{shape.gates(), layout.record.columns, shape.streams, layout.batch_sums.columns};
  for (int k = 0; k < shape.all_states(); ++k) result.push_back(layout.state_width(k));
  return result;
}

std::string plan(std::string_view cell, int64_t T, int64_t N, int64_t C, at::IntArrayRef sizes, int64_t heads,
                 const optional<Tensor>& batch_sizes, at::ScalarType dtype, optional<at::ScalarType> operand_dtype,
                 const optional<int64_t>& threads, bool bidirectional, int64_t num_layers, bool checkpoints,
                 bool at_zero, at::OptionalIntArrayRef given_caches) {
  TORCH_CHECK(0 < threads.value_or(1) && threads.value_or(1) <= 1 << 16, "rnnext: threads is ", *threads,
              ", expected 1 to ", 1 << 16);
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble, "rnnext: dtype is ", dtype,
              ", expected float32 or float64: what is computed in");
  TORCH_CHECK(num_layers > 0, "rnnext: num_layers is ", num_layers, ", expected at least 1");
  PlannedScan scan(cell_named(cell), T, N, C, sizes, heads, batch_sizes, Backend::kBlockRows);
  const bool halves = operand_dtype == at::kBFloat16 && dtype == at::kFloat && has_bfloat16<float>();
  TORCH_CHECK(!given_caches || given_caches->size() == 2, "rnnext: caches has ", given_caches->size(),
              " sizes, expected 2: of a processor's own cache, and of the largest");
  Machine machine{threads ? static_cast<int>(*threads) : available_threads(), caches()};
  if (given_caches) machine.caches = {(*given_caches)[0], (*given_caches)[1]};
  const int64_t bytes = c10::elementSize(dtype);
  const char* apart = "";
  bool linked = false;
  if (bidirectional && directions_apart(scan.shape, scan.steps, bytes, machine))
    apart = "directions side by side, each ";
  if (!bidirectional && num_layers > 1) {
    Shape upper = scan.shape;
    upper.C = upper.state_width(0);
    const Steps steps = scan.linked();
    if (layers_apart(upper, steps, bytes, num_layers, machine)) {
      apart = "layers side by side, each ";
      scan.steps = steps;
      linked = true;
    }
  }
  const auto line = [&](Pass pass) {
    const bool backward = pass == Pass::kBackward;
    const bool together = *apart && !(checkpoints && backward);  // segments go one after the other
    const Machine used{together ? 1 : machine.threads, machine.caches};
    Steps steps = scan.steps;
    if (!backward && !linked) steps.block = forward_block(scan.shape, steps, bytes, used);
    const Plan plan = make_plan(scan.shape, steps, {pass, halves, bytes, *apart && backward, at_zero}, used);
    return (together ? apart : "") + to_string(plan, scan.shape, steps);
  };
  return "forward: " + line(Pass::kForward) + "\nbackward: " + line(Pass::kBackward);
}

std::vector<std::string> instruction_set_names() {
  std::vector<std::string> names;
  for (int i = 0; i < kInstructionSetCount; ++i) names.push_back(kInstructionSets[i]->name);
  return names;
}

std::string instruction_set_name() {
  return instruction_set().name;
}

}  // namespace

TORCH_LIBRARY_IMPL(rnnext, CPU, m) {
  Ops<Backend>::implement(m);
  m.impl("dropout_mask", &dropout_mask);
}

TORCH_LIBRARY_IMPL(rnnext, CompositeExplicitAutograd, m) {
  m.impl("cell_shape", &cell_shape);
  m.impl("plan", &plan);
  m.impl("load_cell", &load_cell);
  m.impl("instruction_sets", &instruction_set_names);
  m.impl("instruction_set", &instruction_set_name);
}

}  // namespace rnnext::cpu
