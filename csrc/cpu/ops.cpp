// The ops on the CPU.
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "cpu/pool.h"
#include "cpu/registry.h"
#include "cpu/scan.h"
#include "engine/stack.h"

namespace rnnext::cpu {
namespace {

const CellShape& cell_named(std::string_view name) {
  if (const Cell<float>* cell = find_cell<float>(name)) return cell->shape;
  // A program that was exported brings the names of its cells alone.
  const auto load = c10::Dispatcher::singleton().findSchemaOrThrow("rnnext::load_cached_cell", "");
  if (load.typed<bool(std::string_view)>().call(name)) return find_cell<float>(name)->shape;
  std::string known;
  for (int i = 0; i < kernels<float>().cell_count; ++i) {
    known += std::string(i ? ", " : "") + kernels<float>().cells[i].shape.name;
  }
  TORCH_CHECK_VALUE(false, "rnnext: no cell is called '", name, "'; there are ", known,
                    ", and the cells written in Python whose layers have run on this machine. A cell has another name "
                    "with another version of rnnext, torch or the compiler: export its program with these");
}

struct Backend {
  template <class T>
  static const Cell<T>* cell(const char* name) {
    return find_cell<T>(name);
  }

  template <class T>
  static void scan_forward(const ScanForward<T>& params) {
    if (params.steps.total() > 0) cpu::scan_forward(params);
  }

  template <class T>
  static void scan_backward(const ScanBackward<T>& params) {
    if (params.steps.total() > 0) cpu::scan_backward(params);
  }

  static Tensor empty(at::IntArrayRef sizes, const Tensor& like) { return cpu::empty(sizes, like); }

  static void dropout(const Tensor& src, const Tensor& dst, int64_t seed, int64_t layer, double p) {
    constexpr int64_t grain = 4096;  // elements; a multiple of 4, as the generator makes four at a time
    AT_DISPATCH_FLOATING_TYPES(src.scalar_type(), "rnnext::dropout", [&] {
      const scalar_t* from = src.const_data_ptr<scalar_t>();
      scalar_t* to = dst.data_ptr<scalar_t>();
      at::parallel_for(0, (src.numel() + grain - 1) / grain, 4, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * grain, count = std::min(end * grain, src.numel()) - first;
        kernels<scalar_t>().dropout(first, count, from + first, to + first, seed, layer, p);
      });
    });
  }
};

std::vector<Tensor> run(bool training, std::string_view cell, const Tensor& x, at::TensorList h0,
                        at::TensorList weights, const optional<Tensor>& batch_sizes, const optional<Tensor>& seed,
                        int64_t num_layers, bool bidirectional, double dropout, at::OptionalIntArrayRef sizes,
                        bool bfloat16, int64_t checkpoint_every) {
  const at::AutoDispatchBelowADInplaceOrView below;  // what is computed here has no history
  const Stack<Backend> stack(cell_named(cell), x, h0, weights, batch_sizes, seed, num_layers, bidirectional, dropout,
                             sizes.value_or(at::IntArrayRef()), bfloat16, checkpoint_every);
  return stack.forward(training);
}

std::vector<Tensor> rnn(std::string_view cell, const Tensor& x, at::TensorList h0, at::TensorList weights,
                        const optional<Tensor>& batch_sizes, const optional<Tensor>& seed, int64_t num_layers,
                        bool bidirectional, double dropout, at::OptionalIntArrayRef sizes, bool bfloat16,
                        int64_t checkpoint_every) {
  return run(false, cell, x, h0, weights, batch_sizes, seed, num_layers, bidirectional, dropout, sizes, bfloat16,
             checkpoint_every);
}

std::vector<Tensor> rnn_train(std::string_view cell, const Tensor& x, at::TensorList h0, at::TensorList weights,
                              const optional<Tensor>& batch_sizes, const optional<Tensor>& seed, int64_t num_layers,
                              bool bidirectional, double dropout, at::OptionalIntArrayRef sizes, bool bfloat16,
                              int64_t checkpoint_every) {
  return run(true, cell, x, h0, weights, batch_sizes, seed, num_layers, bidirectional, dropout, sizes, bfloat16,
             checkpoint_every);
}

std::vector<Tensor> rnn_backward(const c10::List<optional<Tensor>>& grads, const Tensor& y, at::TensorList saved,
                                 std::string_view cell, const Tensor& x, at::TensorList h0, at::TensorList weights,
                                 const optional<Tensor>& batch_sizes, const optional<Tensor>& seed, int64_t num_layers,
                                 bool bidirectional, double dropout, at::IntArrayRef sizes,
                                 const c10::List<bool>& output_mask, int64_t samples, bool bfloat16,
                                 int64_t checkpoint_every) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const Stack<Backend> stack(cell_named(cell), x, h0, weights, batch_sizes, seed, num_layers, bidirectional, dropout,
                             sizes, bfloat16, checkpoint_every);
  std::vector<Tensor> given;
  for (const optional<Tensor>& grad : grads) given.push_back(grad.value_or(Tensor()));
  return stack.backward(given, y, saved, output_mask.vec(), samples);
}

// `sizes`: the hidden size, then the cell's others.
Shape shape_of(const CellShape& cell, int64_t C, at::IntArrayRef sizes) {
  TORCH_CHECK(static_cast<int>(sizes.size()) == 1 + cell.sizes, "rnnext: ", sizes.size(), " sizes given, but ",
              cell.name, " has ", 1 + cell.sizes);
  for (int64_t size : sizes) check_size(cell, size);
  return Shape(cell, C, sizes.data());
}

std::vector<int64_t> cell_shape(std::string_view cell, at::IntArrayRef sizes) {
  const CellShape& shape = cell_named(cell);
  const Shape layout = shape_of(shape, 0, sizes);
  std::vector<int64_t> result{shape.gates(), layout.record.columns, shape.streams};
  for (int k = 0; k < shape.all_states(); ++k) result.push_back(layout.state_width(k));
  return result;
}

std::string plan(std::string_view cell, int64_t T, int64_t N, int64_t C, at::IntArrayRef sizes, int64_t heads,
                 const optional<Tensor>& batch_sizes, at::ScalarType dtype, bool bfloat16,
                 const optional<int64_t>& threads) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  const auto check = [](const char* name, int64_t value, int64_t limit) {
    TORCH_CHECK(0 < value && value <= limit, "rnnext: ", name, " is ", value, ", expected 1 to ", limit);
  };
  check("T", T, most), check("N", N, most), check("C", C, most);
  check("threads", threads.value_or(1), 1 << 16);
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble, "rnnext: dtype is ", dtype,
              ", expected float32 or float64: what is computed in");
  Shape shape = shape_of(cell_named(cell), C, sizes);
  const int64_t h = shape.state_width(0);
  TORCH_CHECK(heads == 1 || (heads > 0 && h == shape.H() && h % heads == 0), "rnnext: heads is ", heads,
              ", expected 1 or a divisor of the hidden size ", shape.H());
  shape.heads = heads;
  Sizes s{};
  std::vector<int64_t> offsets{0};
  if (batch_sizes) {
    check_batch_sizes(*batch_sizes, most, s);
    TORCH_CHECK(batch_sizes->size(0) == T && s.N == N, "rnnext: batch_sizes has ", batch_sizes->size(0),
                " steps and begins with ", s.N, ", but T is ", T, " and N is ", N);
    const int64_t* n = batch_sizes->const_data_ptr<int64_t>();
    for (int64_t t = 0; t < s.T; ++t) offsets.push_back(offsets.back() + n[t]);
    T = s.T;
  }
  const Steps steps{T, N, batch_sizes ? offsets.data() : nullptr, false, block_steps(T, N)};
  const bool halves = bfloat16 && dtype == at::kFloat && has_bfloat16<float>();
  const auto line = [&](Pass pass) {
    const int available = threads ? static_cast<int>(*threads) : available_threads();
    return to_string(make_plan(shape, steps, pass, halves, c10::elementSize(dtype), available), shape, steps);
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
  m.impl("rnn", &rnn);
  m.impl("rnn_train", &rnn_train);
  m.impl("rnn_backward", &rnn_backward);
}

TORCH_LIBRARY_IMPL(rnnext, CompositeExplicitAutograd, m) {
  m.impl("cell_shape", &cell_shape);
  m.impl("plan", &plan);
  m.impl("load_cell", &load_cell);
  m.impl("instruction_sets", &instruction_set_names);
  m.impl("instruction_set", &instruction_set_name);
}

}  // namespace rnnext::cpu
