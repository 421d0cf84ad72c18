// The ops on the CPU.
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "cpu/kernels.h"
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

std::vector<int64_t> cell_shape(std::string_view cell, at::IntArrayRef sizes) {
  const CellShape& shape = cell_named(cell);
  TORCH_CHECK(static_cast<int>(sizes.size()) == 1 + shape.sizes, "rnnext: ", sizes.size(), " sizes given, but ", cell,
              " has ", 1 + shape.sizes);
  for (int64_t size : sizes) check_size(shape, size);
  const Shape layout(shape, 0, sizes.data());
  std::vector<int64_t> result{shape.gates(), layout.record.columns, shape.streams};
  for (int k = 0; k < shape.all_states(); ++k) result.push_back(layout.state_width(k));
  return result;
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
  m.impl("load_cell", &load_cell);
  m.impl("instruction_sets", &instruction_set_names);
  m.impl("instruction_set", &instruction_set_name);
}

}  // namespace rnnext::cpu
