// The whole stack: layers, directions, and dropout between layers, around the scans of a backend.
//
// A backend is a class with three static functions: scan_forward(ScanForward<T>), scan_backward(ScanBackward<T>), and
// dropout(src, dst, seed, layer, p).
#pragma once

#include <ATen/Dispatch.h>

#include <algorithm>

#include "engine/check.h"
#include "engine/params.h"

namespace rnnext {

// Rows of a time block, where sequences are many enough. The products over a block's rows then run at full speed, and
// its buffers stay in cache.
constexpr int64_t kBlockRows = 512;

template <class Backend>
class Stack {
 public:
  Stack(const CellShape& cell, const Tensor& x, at::TensorList h0, at::TensorList weights,
        const optional<Tensor>& batch_sizes, const optional<Tensor>& seed, int64_t num_layers, bool bidirectional,
        double dropout)
      : cell_(cell),
        s_(check_arguments(cell, x, h0, weights, batch_sizes, seed, num_layers, bidirectional, dropout)),
        x_(x.contiguous().view({s_.rows, s_.C})),
        dropout_(seed ? dropout : 0),
        seed_(seed ? seed->item<int64_t>() : 0) {
    for (const Tensor& state : h0) h0_.push_back(state.contiguous());
    for (const Tensor& weight : weights) weights_.push_back(weight.contiguous());
    if (batch_sizes) {
      const int64_t* n = batch_sizes->const_data_ptr<int64_t>();
      offsets_.push_back(0);
      for (int64_t t = 0; t < s_.T; ++t) offsets_.push_back(offsets_.back() + n[t]);
    }
  }

  // [y, h_n, ...], and in training what backward() needs: a record for each layer, then y of each layer but the last.
  std::vector<Tensor> forward(bool training) const {
    std::vector<Tensor> finals, records, outputs;
    for (int k = 0; k < cell_.states; ++k) finals.push_back(x_.new_empty({s_.L * s_.D, s_.N, s_.H}));
    for (int64_t l = 0; l < s_.L; ++l) {
      const Tensor input = l == 0 ? x_ : dropped(outputs.back(), l - 1);
      if (!training) outputs.clear();
      outputs.push_back(x_.new_empty({s_.rows, s_.D * s_.H}));
      if (training) records.push_back(x_.new_empty({s_.D, s_.rows, cell_.record() * s_.H}));
      for (int64_t d = 0; d < s_.D; ++d) {
        AT_DISPATCH_FLOATING_TYPES(x_.scalar_type(), "rnnext::rnn", [&] {
          scan_forward<scalar_t>(l, d, input, outputs.back(), training ? records.back() : Tensor(), finals);
        });
      }
    }
    std::vector<Tensor> result{s_.packed ? outputs.back() : outputs.back().view({s_.T, s_.N, s_.D * s_.H})};
    outputs.pop_back();
    for (auto* more : {&finals, &records, &outputs}) result.insert(result.end(), more->begin(), more->end());
    return result;
  }

  // Gradients of x, the initial states and the weights, in that order: those whose entry in `wanted` is true.
  // `grads`: of y and of the final states, undefined where there is none. `saved`: as forward() gave it.
  std::vector<Tensor> backward(const std::vector<Tensor>& grads, const Tensor& y, at::TensorList saved,
                               const std::vector<bool>& wanted) const {
    const int64_t states = cell_.states, first_weight = 1 + h0_.size();
    std::vector<Tensor> dstates;
    for (int64_t k = 0; k < states; ++k) {
      const Tensor& given = grads[1 + k];
      dstates.push_back(given.defined() ? given.clone(at::MemoryFormat::Contiguous)
                                        : x_.new_zeros({s_.L * s_.D, s_.N, s_.H}));
    }
    std::vector<Tensor> dweights(weights_.size());
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (wanted[first_weight + i]) {
        dweights[i] = s_.rows ? at::empty_like(weights_[i]) : at::zeros_like(weights_[i]);
      }
    }
    // The lowest layer that something is wanted of; the ones below it are left out.
    const bool all_layers =
        std::find(wanted.begin(), wanted.begin() + first_weight, true) != wanted.begin() + first_weight;
    int64_t lowest = 0;
    while (!all_layers && lowest < s_.L && !wants_weights(dweights, lowest)) ++lowest;

    Tensor dy = grads[0].defined() ? grads[0].contiguous().view({s_.rows, s_.D * s_.H}) : Tensor();
    Tensor dx;
    for (int64_t l = s_.L - 1; l >= lowest; --l) {
      const Tensor output = l == s_.L - 1 ? y.contiguous().view({s_.rows, s_.D * s_.H}) : saved[s_.L + l];
      const Tensor input = l == 0 ? x_ : dropped(saved[s_.L + l - 1], l - 1);
      const bool wants_dx = l > lowest || (l == 0 && wanted[0]);
      dx = wants_dx ? at::empty_like(input) : Tensor();
      for (int64_t d = 0; d < s_.D; ++d) {
        AT_DISPATCH_FLOATING_TYPES(x_.scalar_type(), "rnnext::rnn_backward", [&] {
          scan_backward<scalar_t>(l, d, input, output, saved[l], dy, dx, dstates, dweights);
        });
      }
      if (l > lowest) dy = dropped(dx, l - 1);
    }

    std::vector<Tensor> result;
    if (wanted[0]) result.push_back(s_.packed ? dx : dx.view({s_.T, s_.N, s_.C}));
    for (size_t k = 0; k < h0_.size(); ++k) {
      if (wanted[1 + k]) result.push_back(dstates[k]);
    }
    for (const Tensor& dweight : dweights) {
      if (dweight.defined()) result.push_back(dweight);
    }
    return result;
  }

 private:
  Steps steps(int64_t direction) const {
    const int64_t block = std::clamp<int64_t>(kBlockRows / std::max<int64_t>(s_.N, 1), 1, s_.T);
    return {s_.T, s_.N, s_.packed ? offsets_.data() : nullptr, direction == 1, block};
  }

  // Dropout after layer l: of its outputs, and of the gradients that come back to them. The mask is made anew each time.
  Tensor dropped(const Tensor& values, int64_t l) const {
    if (dropout_ == 0) return values;
    Tensor result = at::empty_like(values);
    Backend::dropout(values, result, seed_, l, dropout_);
    return result;
  }

  bool wants_weights(const std::vector<Tensor>& dweights, int64_t l) const {
    const int64_t count = s_.D * s_.tensors_a_layer();
    return std::any_of(dweights.begin() + l * count, dweights.begin() + (l + 1) * count,
                       [](const Tensor& dweight) { return dweight.defined(); });
  }

  template <class T>
  static Rows<T> rows_of(const Tensor& matrix, int64_t column = 0) {
    return {matrix.data_ptr<T>() + column, matrix.size(-1)};
  }

  template <class T>
  static T* data_of(const Tensor& tensor) {
    return tensor.defined() ? tensor.data_ptr<T>() : nullptr;
  }

  // Sequence states of layer l, direction d: [N, H] at a time.
  template <class T>
  T* state_of(const Tensor& states, int64_t l, int64_t d) const {
    return states.data_ptr<T>() + (l * s_.D + d) * s_.N * s_.H;
  }

  template <class T>
  void scan_forward(int64_t l, int64_t d, const Tensor& x, const Tensor& y, const Tensor& record,
                    const std::vector<Tensor>& finals) const {
    const Tensor* w = &weights_[(l * s_.D + d) * s_.tensors_a_layer()];
    ScanForward<T> p{.cell = Backend::template cell<T>(cell_.name), .steps = steps(d), .C = x.size(1), .H = s_.H};
    p.x = rows_of<T>(x);
    p.w_ih = rows_of<T>(w[0]);
    p.w_hh = rows_of<T>(w[1]);
    p.b_ih = s_.bias ? data_of<T>(w[2]) : nullptr;
    p.b_hh = s_.bias ? data_of<T>(w[3]) : nullptr;
    for (int k = 0; k < cell_.states; ++k) {
      p.h0[k] = h0_.empty() ? nullptr : state_of<T>(h0_[k], l, d);
      p.state[k] = state_of<T>(finals[k], l, d);
    }
    p.y = rows_of<T>(y, d * s_.H);
    if (record.defined()) p.record = rows_of<T>(record.select(0, d));
    Backend::scan_forward(p);
  }

  template <class T>
  void scan_backward(int64_t l, int64_t d, const Tensor& x, const Tensor& y, const Tensor& record, const Tensor& dy,
                     const Tensor& dx, const std::vector<Tensor>& dstates, const std::vector<Tensor>& dweights) const {
    const int64_t first = (l * s_.D + d) * s_.tensors_a_layer();
    ScanBackward<T> p{.cell = Backend::template cell<T>(cell_.name), .steps = steps(d), .C = x.size(1), .H = s_.H};
    p.x = rows_of<T>(x);
    p.w_ih = rows_of<T>(weights_[first]);
    p.w_hh = rows_of<T>(weights_[first + 1]);
    for (int k = 0; k < cell_.states; ++k) {
      p.h0[k] = h0_.empty() ? nullptr : state_of<T>(h0_[k], l, d);
      p.dstate[k] = state_of<T>(dstates[k], l, d);
    }
    p.y = rows_of<T>(y, d * s_.H);
    p.record = rows_of<T>(record.select(0, d));
    if (dy.defined()) p.dy = rows_of<T>(dy, d * s_.H);
    if (dx.defined()) p.dx = rows_of<T>(dx);
    p.accumulate_dx = d > 0;
    p.dw_ih = data_of<T>(dweights[first]);
    p.dw_hh = data_of<T>(dweights[first + 1]);
    p.db_ih = s_.bias ? data_of<T>(dweights[first + 2]) : nullptr;
    p.db_hh = s_.bias ? data_of<T>(dweights[first + 3]) : nullptr;
    Backend::scan_backward(p);
  }

  const CellShape& cell_;
  const Sizes s_;
  const Tensor x_;  // [rows, C]
  const double dropout_;
  const int64_t seed_;
  std::vector<Tensor> h0_, weights_;
  std::vector<int64_t> offsets_;
};

}  // namespace rnnext
