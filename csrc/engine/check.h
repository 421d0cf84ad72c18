// Every check of the op's arguments, once, for every backend; and the sizes that follow from them.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "engine/cell.h"

namespace rnnext {

using at::Tensor;
using std::optional;

// The sizes of a call. Rows: T * N for padded input, the sum of batch_sizes for packed input.
struct Sizes {
  int64_t T, N, C, H, L, D, rows;
  bool packed, bias;

  int64_t tensors_a_layer() const { return bias ? 4 : 2; }  // W_ih, W_hh, b_ih, b_hh: of one direction
};

inline void check_shape(const char* name, const Tensor& tensor, at::IntArrayRef expected) {
  TORCH_CHECK(tensor.sizes() == expected, "rnnext: ", name, " has shape ", tensor.sizes(), ", expected ", expected);
}

inline Sizes check_input(const Tensor& x, const optional<Tensor>& batch_sizes) {
  Sizes s{};
  s.packed = batch_sizes.has_value();
  if (!s.packed) {
    TORCH_CHECK(x.dim() == 3, "rnnext: x has ", x.dim(), " dimensions, expected 3: [T, N, C]");
    s.T = x.size(0), s.N = x.size(1), s.C = x.size(2), s.rows = s.T * s.N;
  } else {
    TORCH_CHECK(x.dim() == 2, "rnnext: packed x has ", x.dim(), " dimensions, expected 2: [sum of batch_sizes, C]");
    const Tensor& b = *batch_sizes;
    TORCH_CHECK(b.dim() == 1 && b.scalar_type() == at::kLong && b.device().is_cpu() && b.is_contiguous(),
                "rnnext: batch_sizes must be a contiguous int64 CPU tensor of shape [T], got ", b.scalar_type(), " on ",
                b.device(), " of shape ", b.sizes());
    s.T = b.size(0), s.C = x.size(1);
    const int64_t* n = b.const_data_ptr<int64_t>();
    for (int64_t t = 0; t < s.T; ++t) {
      TORCH_CHECK(n[t] > 0 && (t == 0 || n[t] <= n[t - 1]), "rnnext: batch_sizes must be positive and never increase, ",
                  "but batch_sizes[", t, "] is ", n[t], t ? " after " : "", t ? std::to_string(n[t - 1]) : "");
      s.rows += n[t];
    }
    s.N = s.T ? n[0] : 0;
    TORCH_CHECK(x.size(0) == s.rows, "rnnext: packed x has ", x.size(0), " rows, but batch_sizes add up to ", s.rows);
  }
  TORCH_CHECK(s.T > 0, "rnnext: Expected sequence length to be larger than 0 in RNN");
  return s;
}

inline void check_like(const char* name, const Tensor& tensor, const Tensor& x) {
  TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), "rnnext: ", name, " is ", tensor.scalar_type(), " but x is ",
              x.scalar_type(), "; convert one of them");
  TORCH_CHECK(tensor.device() == x.device(), "rnnext: ", name, " is on ", tensor.device(), " but x is on ", x.device());
}

inline Sizes check_arguments(const CellShape& cell, const Tensor& x, at::TensorList h0, at::TensorList weights,
                             const optional<Tensor>& batch_sizes, const optional<Tensor>& seed, int64_t num_layers,
                             bool bidirectional, double dropout) {
  Sizes s = check_input(x, batch_sizes);
  s.L = num_layers, s.D = bidirectional ? 2 : 1;
  TORCH_CHECK(s.L > 0, "rnnext: num_layers is ", s.L, ", expected at least 1");
  const int64_t directions = s.L * s.D, count = weights.size();
  TORCH_CHECK(count == 2 * directions || count == 4 * directions, "rnnext: ", count, " weights given, expected ",
              2 * directions, " (without bias) or ", 4 * directions, " for ", s.L, " layers and ", s.D, " directions");
  s.bias = count == 4 * directions;
  TORCH_CHECK(weights[1].dim() == 2, "rnnext: W_hh has ", weights[1].dim(), " dimensions, expected 2");
  s.H = weights[1].size(1);
  TORCH_CHECK(s.H > 0, "rnnext: W_hh has shape ", weights[1].sizes(), ", expected a hidden size of at least 1");
  const int64_t gates = cell.gates() * s.H;
  for (int64_t i = 0; i < directions; ++i) {
    const at::TensorList w = weights.slice(i * s.tensors_a_layer(), s.tensors_a_layer());
    check_shape("W_ih", w[0], {gates, i < s.D ? s.C : s.D * s.H});
    check_shape("W_hh", w[1], {gates, s.H});
    if (s.bias) {
      check_shape("b_ih", w[2], {gates});
      check_shape("b_hh", w[3], {gates});
    }
    for (const Tensor& tensor : w) check_like("a weight", tensor, x);
  }
  TORCH_CHECK(h0.empty() || static_cast<int>(h0.size()) == cell.states, "rnnext: ", h0.size(),
              " initial states given, but ", cell.name, " has ", cell.states);
  for (const Tensor& state : h0) {
    check_shape("an initial state", state, {directions, s.N, s.H});
    check_like("an initial state", state, x);
  }
  TORCH_CHECK(dropout >= 0 && dropout <= 1, "rnnext: dropout is ", dropout, ", expected a probability");
  TORCH_CHECK(!seed || (seed->numel() == 1 && seed->scalar_type() == at::kLong && seed->device().is_cpu()),
              "rnnext: seed must be an int64 CPU tensor with one element");
  return s;
}

}  // namespace rnnext
