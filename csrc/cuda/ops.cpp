// The ops on CUDA devices.
#include "engine/ops.h"

#include "cuda/elementwise.h"
#include "cuda/persistent_run.h"
#include "cuda/registry.h"
#include "cuda/scan.h"
#include "cuda/torch.h"
#include "engine/planned.h"

namespace rnnext::cuda {
namespace {

struct Backend {
  // A block's products fill the device, and its buffers take some hundred megabytes at most.
  static constexpr int64_t kBlockRows = 4096;
  static constexpr bool kReadsBFloat16 = false;

  using DeviceGuard = cuda::DeviceGuard;

  static const CellShape& cell_named(std::string_view name) { return cuda::cell_named<float>(name).shape; }

  template <class T>
  static void scan_forward(const std::vector<ScanForward<T>>& scans, bool) {
    for (const auto& scan : scans) {
      if (scan.steps.total() > 0) cuda::scan_forward(scan);
    }
  }

  template <class T>
  static void scan_backward(const std::vector<ScanBackward<T>>& scans, bool) {
    for (const auto& scan : scans) {
      if (scan.steps.total() > 0) cuda::scan_backward(scan);
    }
  }

  static bool directions_apart(const Shape&, const Steps&, int64_t) { return false; }
  static bool layers_apart(const Shape&, const Steps&, int64_t, int64_t) { return false; }

  static Tensor empty(at::IntArrayRef sizes, const Tensor& like) { return at::empty(sizes, like.options()); }

  template <class T>
  static void dropout(int64_t first, int64_t count, const T* src, T* dst, int64_t seed, int64_t layer, double p) {
    cuda::dropout<T>(first, count, src, dst, seed, static_cast<uint32_t>(layer), p, current_stream());
  }
};

std::string plan(std::string_view name, const Tensor& x, int64_t T, int64_t N, int64_t C, at::IntArrayRef sizes,
                 int64_t heads, const optional<Tensor>& batch_sizes, optional<at::ScalarType> operand_dtype) {
  const DeviceGuard guard(x);
  const bool is_float = x.scalar_type() == at::kFloat;
  TORCH_CHECK(is_float || x.scalar_type() == at::kDouble, "rnnext: x is ", x.scalar_type(),
              ", expected float32 or float64: what is computed in");
  const Cell<float>& cell = cuda::cell_named<float>(name);
  const PlannedScan scan(cell.shape, T, N, C, sizes, heads, batch_sizes, Backend::kBlockRows);
  const Precision precision = precision_of(check_operand_dtype(operand_dtype));
  const auto line = [&](bool forward) {
    const Route route = find_route(scan.shape, scan.steps, is_float ? cell.persistent : nullptr, forward, precision);
    const std::string steps = "; time blocks of " + std::to_string(scan.steps.block) + " steps; " +
                              std::to_string(static_cast<int64_t>(route.cycles)) + " cycles a step expected";
    if (!route.tiling) return std::string("step by step (") + route.why_not + ")" + steps;
    return "in one launch, " + to_string(*route.tiling) + ", products in " + to_string(precision) + steps;
  };
  return "forward: " + line(true) + "\nbackward: " + line(false);
}

}  // namespace

// The key is CUDA's (or, in the tests' emulator, the CPU's).
TORCH_LIBRARY_IMPL(rnnext, RNNEXT_CUDA_KEY, m) {
  Ops<Backend>::implement(m);
  m.impl("plan_cuda", &plan);
}

TORCH_LIBRARY_IMPL(rnnext, CompositeExplicitAutograd, m) {
  m.impl("load_cuda_cell", &load_cell);
}

}  // namespace rnnext::cuda
