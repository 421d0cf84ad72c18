// One call of the op: its arguments, checked; the forms of the tensors that it returns and keeps, and where in them what a
// scan reads and writes lies.
#pragma once

#include <algorithm>

#include "engine/check.h"
#include "engine/params.h"

namespace rnnext {

class Call {
 public:
  // `reads_bfloat16`: matrices of bfloat16 stay as they are; else they are converted here.
  Call(bool reads_bfloat16, const CellShape& cell, const Tensor& x, at::TensorList h0, at::TensorList weights,
       const optional<Tensor>& batch_sizes, const optional<Tensor>& seed, int64_t num_layers, bool bidirectional,
       double dropout, at::IntArrayRef sizes, optional<at::ScalarType> operand_dtype, int64_t checkpoint_every,
       bool sequences)
      : cell_(cell),
        s_(check_arguments(cell, x, h0, weights, batch_sizes, seed, num_layers, bidirectional, dropout, sizes)),
        h_(s_.width(cell.states.width[0])),
        x_(x.contiguous().view({cell.streams, s_.rows, s_.C})),
        dropout_(seed && !seed->is_floating_point() ? dropout : 0),
        operands_(check_operand_dtype(operand_dtype)),
        checkpoint_every_(check_checkpoint_every(checkpoint_every, s_.all_steps)),
        given_noise_(seed && seed->is_floating_point() ? seed->contiguous() : Tensor()),
        noise_(source_of(seed)),
        sequences_(sequences) {
    for (const Tensor& state : h0) h0_.push_back(state.contiguous());
    for (const Tensor& weight : weights) {
      const bool sums = cell.mixes_sequences() && (dtypes_.size() + 1) % s_.weights == 0;
      dtypes_.push_back(weight.scalar_type());
      const bool read = reads_bfloat16 && weight.dim() == 2 && !sums;
      weights_.push_back((read ? weight : weight.to(x.scalar_type())).contiguous());
    }
    if (batch_sizes) {
      const int64_t* n = batch_sizes->const_data_ptr<int64_t>();
      offsets_.push_back(0);
      for (int64_t t = 0; t < s_.T; ++t) offsets_.push_back(offsets_.back() + n[t]);
    }
  }

 protected:
  void check_backward(const std::vector<Tensor>& grads, const Tensor& y, at::TensorList saved,
                      const std::vector<bool>& wanted) const {
    const auto check = [&](const char* name, const Tensor& tensor, at::IntArrayRef expected) {
      check_shape(name, tensor, expected);
      check_like(name, tensor, x_);
    };
    const std::vector<int> sequences = sequenced();
    const int64_t outputs = 1 + cell_.all_states() + sequences.size(), inputs = 1 + h0_.size() + weights_.size();
    TORCH_CHECK(static_cast<int64_t>(grads.size()) == outputs, "rnnext: ", grads.size(), " grads given, expected ",
                outputs, ": of y, of each final state and of each sequence");
    TORCH_CHECK(static_cast<int64_t>(wanted.size()) == inputs, "rnnext: output_mask has ", wanted.size(),
                " entries, expected ", inputs, ": x, the initial states, the weights");
    const int64_t sums = cell_.mixes_sequences(), kept = sums + 2 * s_.L - 1;
    TORCH_CHECK(static_cast<int64_t>(saved.size()) == kept, "rnnext: ", saved.size(), " saved tensors given, expected ",
                kept, " for ", s_.L, " layers");
    if (sums) check("sums over sequences", saved[0], sums_shape());
    for (int64_t i = s_.weights; sums && i <= static_cast<int64_t>(weights_.size()); i += s_.weights) {
      TORCH_CHECK(!wanted[h0_.size() + i], "rnnext: there is no gradient of sums over sequences that are given");
    }
    const std::vector<int64_t> form = form_of(s_.D * h_);
    check("y", y, form);
    if (grads[0].defined()) check("the gradient of y", grads[0], form);
    for (int k = 0; k < cell_.all_states(); ++k) {
      if (grads[1 + k].defined()) check("the gradient of a final state", grads[1 + k], state_shape(k));
    }
    for (size_t i = 0; i < sequences.size(); ++i) {
      const Tensor& grad = grads[1 + cell_.all_states() + i];
      if (grad.defined()) check("the gradient of a sequence", grad, sequence_form(sequences[i]));
    }
    for (int64_t l = 0; l < s_.L; ++l) {
      check("what a layer saved", saved[sums + l], record_shape());
      if (l > 0) check("the saved output of a layer", saved[sums + s_.L + l - 1], {cell_.streams, s_.rows, s_.D * h_});
    }
  }

  void check_samples(int64_t samples) const {
    bool fits = samples >= 0;
    for (int64_t t = 0; fits && samples > 0 && t < s_.T; ++t) {
      fits = (s_.packed ? offsets_[t + 1] - offsets_[t] : s_.N) % samples == 0;
    }
    fits &= samples == 0 || !cell_.mixes_sequences();
    TORCH_CHECK(fits, "rnnext: samples is ", samples, ", expected a divisor of the rows of each step, or 0");
  }

  Shape shape(int64_t inputs) const {
    Shape result(cell_, inputs, s_.of_cell);
    result.heads = s_.heads;
    return result;
  }

  // Of what a layer keeps. Checkpoints: the states, side by side, before the first step of each segment.
  std::vector<int64_t> record_shape() const {
    const Shape sizes = shape(s_.C);
    if (!checkpoint_every_) return {s_.D, s_.rows, sizes.record.columns};
    return {s_.D, 1 + (s_.all_steps - 1) / checkpoint_every_, s_.N, sizes.state_columns()};
  }

  // Sums over sequences, of a cell that has such: as given, or to be computed.
  std::vector<int64_t> sums_shape() const { return {s_.L * s_.D, s_.all_steps, shape(s_.C).batch_sums.columns}; }
  std::vector<Tensor> first_sums() const {
    if (!cell_.mixes_sequences()) return {};
    const Tensor sums = x_.new_zeros(sums_shape());
    for (int64_t i = 0; s_.given_sums && i < s_.L * s_.D; ++i) {
      sums[i].narrow(1, 0, s_.sums).copy_(weights_[(i + 1) * s_.weights - 1]);
    }
    return {sums};
  }
  template <class T>
  Rows<T> sums_of(const std::vector<Tensor>& sums, int64_t l, int64_t d) const {
    if (sums.empty()) return {};
    const Tensor of_scan = sums[0][l * s_.D + d];
    return {of_scan.data_ptr<T>(), of_scan.size(1)};
  }

  std::vector<int64_t> state_shape(int k) const { return {s_.L * s_.D, s_.N, s_.width(cell_.state_width(k))}; }

  // The states whose sequences are wanted: of each stream all but h.
  std::vector<int> sequenced() const {
    std::vector<int> states;
    for (int k = 0; sequences_ && k < cell_.all_states(); ++k) {
      if (k % cell_.states.count) states.push_back(k);
    }
    return states;
  }
  std::vector<int64_t> sequence_form(int k) const {
    const int64_t columns = s_.D * s_.width(cell_.state_width(k));
    return s_.packed ? std::vector<int64_t>{s_.rows, columns} : std::vector<int64_t>{s_.T, s_.N, columns};
  }
  // Of direction d, where state k has a sequence.
  template <class T>
  void set_sequences(Rows<T>* target, const std::vector<Tensor>& sequences, int64_t d) const {
    using Value = std::remove_const_t<T>;
    const std::vector<int> states = sequenced();
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (!sequences[i].defined()) continue;
      const int64_t width = s_.width(cell_.state_width(states[i]));
      target[states[i]] = {sequences[i].data_ptr<Value>() + d * width, s_.D * width};
    }
  }

  // [streams, rows, columns], and the form in which x was given.
  Tensor as_rows(const Tensor& values) const {
    return values.contiguous().view({cell_.streams, s_.rows, values.size(-1)});
  }
  Tensor as_given(const Tensor& rows) const { return rows.view(form_of(rows.size(2))); }
  std::vector<int64_t> form_of(int64_t columns) const {
    std::vector<int64_t> form;
    if (cell_.streams > 1) form.push_back(cell_.streams);
    if (s_.packed) {
      form.insert(form.end(), {s_.rows, columns});
    } else {
      form.insert(form.end(), {s_.T, s_.N, columns});
    }
    return form;
  }

  // Rows of padding, [streams, rows - used, columns], are written here alone, and never read.
  void clear_padding(const Tensor& values) const {
    if (s_.used < s_.rows) values.narrow(1, s_.used, s_.rows - s_.used).zero_();
  }

  // The first of the weights of layer l, direction d; of the tangents for stream 1.
  int64_t first_weight(int stream, int64_t l, int64_t d) const { return ((stream * s_.L + l) * s_.D + d) * s_.weights; }

  bool wants_weights(const std::vector<Tensor>& dweights, int64_t l) const {
    for (int stream = 0; stream < cell_.streams; ++stream) {
      const auto first = dweights.begin() + first_weight(stream, l, 0);
      if (std::any_of(first, first + s_.D * s_.weights, [](const Tensor& t) { return t.defined(); })) return true;
    }
    return false;
  }

  // Rows of one stream of [streams, rows, columns].
  template <class T>
  static Rows<T> rows_of(const Tensor& values, int stream, int64_t column = 0) {
    return {values.data_ptr<T>() + stream * values.size(1) * values.size(2) + column, values.size(2)};
  }

  // State k of layer l, direction d: [N, width].
  template <class T>
  T* state_of(const std::vector<Tensor>& states, int k, int64_t l, int64_t d) const {
    if (states.empty()) return nullptr;
    return states[k].data_ptr<T>() + (l * s_.D + d) * s_.N * states[k].size(2);
  }

  // Those that are defined and of type T.
  template <class T>
  Weights<T> weights_of(const std::vector<Tensor>& tensors, int64_t first) const {
    auto data = [&]() -> T* {
      const Tensor& tensor = tensors[first++];
      return tensor.defined() && tensor.scalar_type() == dtype_of<T>() ? static_cast<T*>(tensor.data_ptr()) : nullptr;
    };
    const bool recurrent = cell_.recurrent_gates() > 0;
    Weights<T> w;
    w.w_ih = data();
    if (recurrent) w.w_hh = data();
    if (s_.bias) w.b_ih = data();
    if (s_.bias && recurrent) w.b_hh = data();
    for (int m = 0; m < cell_.matrices; ++m) w.matrix[m] = data();
    for (int k = 0; k < cell_.params.count; ++k) w.param[k] = data();
    return w;
  }

  template <class T>
  static constexpr at::ScalarType dtype_of() {
    using Value = std::remove_const_t<T>;
    return std::is_same_v<Value, BFloat16> ? at::kBFloat16 : c10::CppTypeToScalarType<Value>::value;
  }

  static NoiseSource source_of(const optional<Tensor>& seed) {
    if (!seed || seed->is_floating_point()) return {};
    return {true, static_cast<uint64_t>(seed->item<int64_t>())};
  }

  NoiseSource noise(int64_t l, int64_t d) const {
    NoiseSource source = noise_;
    source.scan = static_cast<uint32_t>(l * s_.D + d);
    return source;
  }

  template <class T>
  Rows<const T> given_noise(int64_t l, int64_t d) const {
    if (!given_noise_.defined()) return {};
    const int64_t columns = given_noise_.size(2);
    return {given_noise_.const_data_ptr<T>() + (l * s_.D + d) * s_.rows * columns, columns};
  }

  const CellShape& cell_;
  const Sizes s_;
  const int64_t h_;  // width of h
  const Tensor x_;   // [streams, rows, C]
  const double dropout_;
  const Operands operands_;
  const int64_t checkpoint_every_;
  const Tensor given_noise_;  // [L * D, rows, columns], or undefined
  const NoiseSource noise_;
  const bool sequences_;
  std::vector<Tensor> h0_, weights_;
  std::vector<at::ScalarType> dtypes_;  // of the weights as given
  std::vector<int64_t> offsets_;
};

}  // namespace rnnext
