// Every check of the op's arguments, once, for every backend; and the sizes that follow from them.
#pragma once

#include <ATen/ATen.h>

#include <limits>
#include <string>
#include <vector>

#include "engine/cell.h"
#include "engine/params.h"

namespace rnnext {

using at::Tensor;
using std::optional;

// The sizes of a call. Rows: of x. Of packed x the first `used` ones, the sum of batch_sizes, belong to sequences; padding
// may follow, so that shapes do not depend on lengths. T counts the steps that have rows, all_steps the others too.
struct Sizes {
  int64_t T, all_steps, N, C, H, L, D, rows, used;
  int64_t heads = 1;
  int64_t of_cell[kMaxSizes];  // H, then the cell's other sizes
  int64_t weights = 0;         // of one direction of a layer
  int64_t sums = 0;            // columns of sums over sequences, of one stream
  bool given_sums = false;     // which are given
  bool packed, bias;

  int64_t width(int8_t number) const { return number == kOne ? 1 : of_cell[number]; }
};

inline void check_shape(const char* name, const Tensor& tensor, at::IntArrayRef expected) {
  TORCH_CHECK(tensor.sizes() == expected, "rnnext: ", name, " has shape ", tensor.sizes(), ", expected ", expected);
}

// batch_sizes [T] -> s.T without the steps that have no rows, s.N, s.used.
inline void check_batch_sizes(const Tensor& b, int64_t rows, Sizes& s) {
  TORCH_CHECK(b.dim() == 1 && b.scalar_type() == at::kLong && b.device().is_cpu() && b.is_contiguous(),
              "rnnext: batch_sizes must be a contiguous int64 CPU tensor of shape [T], got ", b.scalar_type(), " on ",
              b.device(), " of shape ", b.sizes());
  const int64_t* n = b.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < b.size(0); ++t) {
    TORCH_CHECK(t == 0 ? n[0] > 0 : n[t] >= 0 && n[t] <= n[t - 1],
                "rnnext: batch_sizes must begin above 0, never increase and not be negative, but batch_sizes[", t,
                "] is ", n[t], t ? " after " : "", t ? std::to_string(n[t - 1]) : "");
    TORCH_CHECK(n[t] <= rows, "rnnext: packed x has ", rows, " rows, but batch_sizes[", t, "] is ", n[t]);
    s.T += n[t] > 0;
    s.used += n[t];
  }
  s.N = s.T ? n[0] : 0;
}

// x is [T, N, C], or packed [rows, C]; for a cell of two streams, two of these.
inline Sizes check_input(const CellShape& cell, const Tensor& given, const optional<Tensor>& batch_sizes) {
  TORCH_CHECK(cell.streams == 1 || (given.dim() > 0 && given.size(0) == cell.streams), "rnnext: x has shape ",
              given.sizes(), ", expected ", cell.streams, " streams in the first dimension for ", cell.name);
  const Tensor x = cell.streams == 1 ? given : given.select(0, 0);
  Sizes s{};
  s.packed = batch_sizes.has_value();
  if (!s.packed) {
    TORCH_CHECK(x.dim() == 3, "rnnext: x has ", x.dim(), " dimensions, expected 3: [T, N, C]");
    s.T = s.all_steps = x.size(0), s.N = x.size(1), s.C = x.size(2), s.rows = s.used = s.T * s.N;
  } else {
    TORCH_CHECK(x.dim() == 2, "rnnext: packed x has ", x.dim(), " dimensions, expected 2: [sum of batch_sizes, C]");
    s.rows = x.size(0), s.C = x.size(1);
    check_batch_sizes(*batch_sizes, s.rows, s);
    s.all_steps = batch_sizes->size(0);
    const int64_t padded = s.all_steps * s.N;
    TORCH_CHECK(s.used <= s.rows && s.rows <= padded, "rnnext: packed x has ", s.rows,
                " rows, but batch_sizes add up to ", s.used, " (", padded, " with the padding)");
  }
  TORCH_CHECK(s.T > 0, "rnnext: Expected sequence length to be larger than 0 in RNN");
  return s;
}

inline void check_dtype(const char* name, const Tensor& tensor, const Tensor& x) {
  TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), "rnnext: ", name, " is ", tensor.scalar_type(), " but x is ",
              x.scalar_type(), "; convert one of them");
}

inline void check_device(const char* name, const Tensor& tensor, const Tensor& x) {
  TORCH_CHECK(tensor.device() == x.device(), "rnnext: ", name, " is on ", tensor.device(), " but x is on ", x.device());
}

inline void check_like(const char* name, const Tensor& tensor, const Tensor& x) {
  check_dtype(name, tensor, x);
  check_device(name, tensor, x);
}

// The weights of one direction of a layer: W_ih, W_hh, b_ih, b_hh, the cell's matrices, its parameters; and of a cell that
// sums over sequences these sums, if they are given, [T, all their widths], or without steps. A cell without recurrent gates
// has no W_hh and no b_hh.
inline void check_weights(const CellShape& cell, const Sizes& s, int64_t inputs, at::TensorList w) {
  const int64_t gates = cell.gates() * s.H, recurrent = cell.recurrent_gates() * s.H;
  size_t next = 0;
  check_shape("W_ih", w[next++], {gates, inputs});
  if (recurrent) check_shape("W_hh", w[next++], {recurrent, s.width(cell.states.width[0]) / s.heads});
  if (s.bias) check_shape("b_ih", w[next++], {gates});
  if (s.bias && recurrent) check_shape("b_hh", w[next++], {recurrent});
  for (int m = 0; m < cell.matrices; ++m) {
    const Product* product = cell.product;
    while (product->matrix != m) ++product;
    check_shape("a matrix of the cell", w[next++], {s.width(product->to), s.width(product->from)});
  }
  for (int k = 0; k < cell.params.count; ++k) {
    check_shape("a parameter of the cell", w[next++], {s.width(cell.params.width[k])});
  }
  if (cell.mixes_sequences()) {
    const int64_t steps = w[next].dim() == 2 && w[next].size(0) == 0 ? 0 : s.all_steps;
    check_shape("the sums over sequences", w[next], {steps, s.sums});
    TORCH_CHECK((steps > 0) == s.given_sums, "rnnext: sums over sequences must be given for all layers or for none");
  }
}

// Sums of sizes must not overflow.
inline void check_size(const CellShape& cell, int64_t size) {
  TORCH_CHECK(0 < size && size <= std::numeric_limits<int32_t>::max(), "rnnext: a size of ", cell.name, " is ", size,
              ", expected 1 to 2^31 - 1");
}

inline void find_sizes(const CellShape& cell, Sizes& s, at::TensorList weights, at::IntArrayRef sizes) {
  TORCH_CHECK(static_cast<int>(sizes.size()) == cell.sizes, "rnnext: ", sizes.size(), " sizes given, but ", cell.name,
              " has ", cell.sizes, " besides the hidden size");
  const Tensor& w_ih = weights[0];
  TORCH_CHECK(w_ih.dim() == 2 && w_ih.size(0) > 0 && w_ih.size(0) % cell.gates() == 0, "rnnext: W_ih has shape ",
              w_ih.sizes(), ", expected [", cell.gates(), " * H, C] with a hidden size H of at least 1");
  s.H = s.of_cell[0] = w_ih.size(0) / cell.gates();
  for (size_t i = 0; i < sizes.size(); ++i) {
    check_size(cell, sizes[i]);
    s.of_cell[i + 1] = sizes[i];
  }
  if (!cell.recurrent_gates()) return;
  const Tensor& w_hh = weights[1];
  const int64_t h = s.width(cell.states.width[0]);
  TORCH_CHECK(w_hh.dim() == 2, "rnnext: W_hh has ", w_hh.dim(), " dimensions, expected 2");
  if (w_hh.size(1) == h) return;
  // Narrower by a whole factor: blocks on the diagonal.
  const bool fits = w_hh.size(1) > 0 && h == s.H && h % w_hh.size(1) == 0;
  if (!fits) check_shape("W_hh", w_hh, {cell.recurrent_gates() * s.H, h});
  s.heads = h / w_hh.size(1);
}

inline Operands check_operand_dtype(optional<at::ScalarType> dtype) {
  if (!dtype) return Operands::kAsGiven;
  TORCH_CHECK(dtype == at::kBFloat16 || dtype == at::kHalf, "rnnext: operand_dtype is ", *dtype,
              ", expected float16, bfloat16 or None");
  return dtype == at::kHalf ? Operands::kHalf : Operands::kBFloat16;
}

// At most all steps.
inline int64_t check_checkpoint_every(int64_t checkpoint_every, int64_t all_steps) {
  TORCH_CHECK(checkpoint_every >= 0, "rnnext: checkpoint_every is ", checkpoint_every,
              ", expected a number of steps, or 0 to keep what every step computes");
  return std::min(checkpoint_every, all_steps);
}

// An integer; or in its place the noise of the cell itself, side by side, of each direction of each layer.
inline void check_seed(const CellShape& cell, const Sizes& s, const Tensor& seed, const Tensor& x, double dropout) {
  if (!seed.is_floating_point()) {
    TORCH_CHECK(seed.numel() == 1 && seed.scalar_type() == at::kLong && seed.device().is_cpu(),
                "rnnext: seed must be an int64 CPU tensor with one element");
    return;
  }
  int64_t columns = 0;
  for (int k = 0; k < cell.noises; ++k) columns += s.width(cell.noise[k].width);
  check_shape("the noise", seed, {s.L * s.D, s.rows, columns});
  check_like("the noise", seed, x);
  TORCH_CHECK(s.L == 1 || dropout == 0,
              "rnnext: noise is given in place of a seed, which dropout between layers needs");
}

inline Sizes check_arguments(const CellShape& cell, const Tensor& x, at::TensorList h0, at::TensorList weights,
                             const optional<Tensor>& batch_sizes, const optional<Tensor>& seed, int64_t num_layers,
                             bool bidirectional, double dropout, at::IntArrayRef sizes) {
  Sizes s = check_input(cell, x, batch_sizes);
  s.L = num_layers, s.D = bidirectional ? 2 : 1;
  TORCH_CHECK(s.L > 0, "rnnext: num_layers is ", s.L, ", expected at least 1");
  const int64_t count = weights.size();
  TORCH_CHECK(s.L <= count, "rnnext: ", count, " weights given for ", s.L, " layers, expected several for each");
  const int64_t directions = s.L * s.D, scans = directions * cell.streams;
  const int64_t sides = cell.recurrent_gates() ? 2 : 1;
  const int64_t plain = sides + cell.matrices + cell.params.count + cell.mixes_sequences();
  TORCH_CHECK(count == plain * scans || count == (plain + sides) * scans, "rnnext: ", count,
              " weights given, expected ", plain * scans, " (without bias) or ", (plain + sides) * scans, " for ", s.L,
              " layers and ", s.D, " directions");
  s.bias = count == (plain + sides) * scans;
  s.weights = count / scans;
  find_sizes(cell, s, weights, sizes);
  if (cell.mixes_sequences()) {
    TORCH_CHECK(!s.packed || s.D == 1, "rnnext: ", cell.name,
                " sums over sequences, which in the reverse direction of packed rows begin at several steps; reverse "
                "the sequences instead");
    for (int k = 0; k < cell.batch_sums.count / cell.streams; ++k) s.sums += s.width(cell.batch_sums.width[k]);
    s.given_sums = weights[s.weights - 1].size(0) > 0;
  }
  const int64_t h = s.width(cell.states.width[0]);
  for (int64_t i = 0; i < scans; ++i) {
    const at::TensorList w = weights.slice(i * s.weights, s.weights);
    check_weights(cell, s, i % directions < s.D ? s.C : s.D * h, w);
    for (const Tensor& tensor : w) {
      if (x.scalar_type() != at::kFloat || tensor.scalar_type() != at::kBFloat16) check_dtype("a weight", tensor, x);
      check_device("a weight", tensor, x);
    }
  }
  TORCH_CHECK(h0.empty() || static_cast<int>(h0.size()) == cell.all_states(), "rnnext: ", h0.size(),
              " initial states given, but ", cell.name, " has ", cell.all_states());
  for (size_t k = 0; k < h0.size(); ++k) {
    check_shape("an initial state", h0[k], {directions, s.N, s.width(cell.state_width(k))});
    check_like("an initial state", h0[k], x);
  }
  TORCH_CHECK(dropout >= 0 && dropout <= 1, "rnnext: dropout is ", dropout, ", expected a probability");
  if (seed) check_seed(cell, s, *seed, x, dropout);
  return s;
}

}  // namespace rnnext
