// The ops of a backend: their arguments become a Stack. Registered by each backend under its device's key. Besides what
// Stack asks for, a backend has cell_named(name), which gives a CellShape, and DeviceGuard, made of x.
#pragma once

#include <ATen/core/List.h>
#include <torch/library.h>

#include "engine/stack.h"

namespace rnnext {

// NAME.states is the cell of that name, of which the sequences of all states are wanted.
constexpr std::string_view kStates = ".states";

inline bool wants_sequences(std::string_view cell) {
  return cell.ends_with(kStates);
}

inline std::string_view base_name(std::string_view cell) {
  return wants_sequences(cell) ? cell.substr(0, cell.size() - kStates.size()) : cell;
}

template <class Backend>
struct Ops {
  static void implement(torch::Library& m) {
    m.impl("rnn", &rnn);
    m.impl("rnn_train", &rnn_train);
    m.impl("rnn_backward", &rnn_backward);
  }

  static std::vector<Tensor> rnn(std::string_view cell, const Tensor& x, at::TensorList h0, at::TensorList weights,
                                 const optional<Tensor>& batch_sizes, const optional<Tensor>& seed, int64_t num_layers,
                                 bool bidirectional, double dropout, at::OptionalIntArrayRef sizes,
                                 optional<at::ScalarType> operand_dtype, int64_t checkpoint_every) {
    return run(false, cell, x, h0, weights, batch_sizes, seed, num_layers, bidirectional, dropout, sizes, operand_dtype,
               checkpoint_every);
  }

  static std::vector<Tensor> rnn_train(std::string_view cell, const Tensor& x, at::TensorList h0,
                                       at::TensorList weights, const optional<Tensor>& batch_sizes,
                                       const optional<Tensor>& seed, int64_t num_layers, bool bidirectional,
                                       double dropout, at::OptionalIntArrayRef sizes,
                                       optional<at::ScalarType> operand_dtype, int64_t checkpoint_every) {
    return run(true, cell, x, h0, weights, batch_sizes, seed, num_layers, bidirectional, dropout, sizes, operand_dtype,
               checkpoint_every);
  }

  static std::vector<Tensor> rnn_backward(const c10::List<optional<Tensor>>& grads, const Tensor& y,
                                          at::TensorList saved, std::string_view cell, const Tensor& x,
                                          at::TensorList h0, at::TensorList weights,
                                          const optional<Tensor>& batch_sizes, const optional<Tensor>& seed,
                                          int64_t num_layers, bool bidirectional, double dropout, at::IntArrayRef sizes,
                                          const c10::List<bool>& output_mask, int64_t samples,
                                          optional<at::ScalarType> operand_dtype, int64_t checkpoint_every) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const typename Backend::DeviceGuard guard(x);
    const Stack<Backend> stack(Backend::cell_named(base_name(cell)), x, h0, weights, batch_sizes, seed, num_layers,
                               bidirectional, dropout, sizes, operand_dtype, checkpoint_every, wants_sequences(cell));
    std::vector<Tensor> given;
    for (const optional<Tensor>& grad : grads) given.push_back(grad.value_or(Tensor()));
    return stack.backward(given, y, saved, output_mask.vec(), samples);
  }

 private:
  static std::vector<Tensor> run(bool training, std::string_view cell, const Tensor& x, at::TensorList h0,
                                 at::TensorList weights, const optional<Tensor>& batch_sizes,
                                 const optional<Tensor>& seed, int64_t num_layers, bool bidirectional, double dropout,
                                 at::OptionalIntArrayRef sizes, optional<at::ScalarType> operand_dtype,
                                 int64_t checkpoint_every) {
    const at::AutoDispatchBelowADInplaceOrView below;  // what is computed here has no history
    const typename Backend::DeviceGuard guard(x);
    // x in half precision is converted here, in memory that is at hand: nothing is kept of it.
    const bool converts = !training && operand_dtype && at::isReducedFloatingType(x.scalar_type());
    const Tensor input = converts ? Backend::empty(x.sizes(), x.new_empty({0}, at::kFloat)).copy_(x) : x;
    const Stack<Backend> stack(Backend::cell_named(base_name(cell)), input, h0, weights, batch_sizes, seed, num_layers,
                               bidirectional, dropout, sizes.value_or(at::IntArrayRef()), operand_dtype,
                               checkpoint_every, wants_sequences(cell));
    return stack.forward(training);
  }
};

}  // namespace rnnext
