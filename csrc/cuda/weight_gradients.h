// Gradients of the weights: after each block of steps, one product for each matrix.
#pragma once

#include <deque>
#include <set>

#include "cuda/memory.h"
#include "engine/step.h"

namespace rnnext::cuda {

template <class T>
class WeightGradients {
 public:
  WeightGradients(const ScanBackward<T>& params, Arena& arena, Stream stream) : p_(params), stream_(stream) {
    const int64_t rows = p_.steps.most_rows_in_a_block();
    int64_t widest = shape_.C;
    for (int k = 0; k < cell_.all_states(); ++k) widest = std::max(widest, shape_.state_width(k));
    for (int k = 0; k < cell_.products; ++k) widest = std::max(widest, shape_.width(cell_.product[k].from));
    arena.add(&before_, rows * widest);
    for (int s = 0; s < cell_.streams; ++s) gradients_.emplace_back(arena, p_.operands, rows, columns_of_matrices());
    operand_.emplace_back(arena, p_.operands, rows, widest);
    if (p_.steps.offsets) arena.add(&offsets_, p_.steps.T + 1);
  }

  void begin() {
    if (offsets_) upload(p_.steps.offsets, p_.steps.T + 1, offsets_, stream_);
  }

  // Adds what a block gives; `gradients` has its rows. `first`: nothing is there before.
  void add_block(int64_t block, Rows<const T> gradients, bool first) {
    const Range rows = p_.steps.rows_of(block);
    begun_.clear();
    const Block b{rows, first};
    std::vector<Matrix> rounded;
    for (int s = 0; s < cell_.streams; ++s) {
      const int64_t column = shape_.gradients.offset[s * cell_.gradients()];
      rounded.push_back(gradients_[s].of(gradients.from(0, column), rows.size(), columns_of_matrices(), stream_));
      add_vectors(b, s, gradients.from(0, column));
    }
    // Of stream s, the gradient of W_ih meets x; of the second stream, it also meets dx, and the tangent's meets x.
    for (int source = 0; source < cell_.streams; ++source) {
      add_inputs(b, source, rounded);
      add_recurrent(b, source, rounded);
      for (int k = 0; k < cell_.products; ++k) add_product(b, source, k, rounded);
    }
  }

 private:
  struct Block {
    Range rows;
    bool first;
  };

  int64_t columns_of_matrices() const {
    return shape_.gradients.offset[cell_.slots() + cell_.products - 1] + width_of_last() - shape_.gradients.offset[0];
  }
  int64_t width_of_last() const {
    return cell_.products ? shape_.width(cell_.product[cell_.products - 1].to) : shape_.H();
  }

  // Whether a block adds to what is there: in a gradient, or the first samples' part of it, that begins at `target`.
  bool adds(const Block& b, const T* target) { return !begun_.insert(target).second || !b.first; }

  // dw [samples, rows, columns], those of each sample in `stride` values: from its row and column on, += gradient^T
  // operand. m, n: of the product.
  void add(const Block& b, Matrix gradient, Matrix operand, int64_t m, int64_t n, Rows<T> dw, int64_t stride,
           bool accumulate, Batch heads = {}) const {
    const int64_t samples = p_.samples;
    const auto strided = [&](Matrix x) { return Matrix{x.data, x.stride * samples, x.transposed}; };
    const Operands type = operand_[0].type();
    if (samples == 1) {
      gemm<T>(type, m, n, b.rows.size(), transposed(gradient), operand, dw, accumulate, heads);
      return;
    }
    for (int64_t i = 0; i < heads.count; ++i) {
      gemm<T>(type, m, n, b.rows.size() / samples, transposed(strided(operand_[0].at(gradient, 0, i * heads.a))),
              strided(operand_[0].at(operand, 0, i * heads.b)), {dw.data + i * heads.c, dw.stride}, accumulate,
              {samples, gradient.stride, operand.stride, stride});
    }
  }

  void add_inputs(const Block& b, int source, const std::vector<Matrix>& gradients) {
    Matrix x{};
    for (int s = source; s < cell_.streams; ++s) {
      T* dw = p_.dw[s - source].w_ih;
      if (!dw) continue;
      if (!x.data) x = operand_[0].of(p_.x[source].from(b.rows.begin), b.rows.size(), shape_.C, stream_);
      const int64_t m = shape_.gate_columns(), n = shape_.C;
      add(b, gradients[s], x, m, n, {dw, n}, m * n, adds(b, dw));
    }
  }

  void add_recurrent(const Block& b, int source, const std::vector<Matrix>& gradients) {
    if (!cell_.recurrent_gates()) return;
    const int64_t H = shape_.H(), n = shape_.head_width(), block = H / shape_.heads;
    Matrix h{};
    for (int s = source; s < cell_.streams; ++s) {
      T* dw = p_.dw[s - source].w_hh;
      if (!dw) continue;
      if (!h.data) h = state_before(b, source * cell_.states.count);
      const bool accumulate = adds(b, dw);
      const int64_t stride = shape_.recurrent_columns() * n;
      const auto gates = [&](int gate, int count, int slot) {
        if (count == 0) return;
        if (shape_.heads == 1) {
          return add(b, operand_[0].at(gradients[s], 0, slot * H), h, count * H, n, {dw + gate * H * n, n}, stride,
                     accumulate);
        }
        for (int g = 0; g < count; ++g) {
          add(b, operand_[0].at(gradients[s], 0, (slot + g) * H), h, block, n, {dw + (gate + g) * H * n, n}, stride,
              accumulate, {shape_.heads, block, n, block * n});
        }
      };
      gates(0, cell_.summed, 0);
      gates(cell_.summed, cell_.apart, cell_.gates());
    }
  }

  void add_product(const Block& b, int source, int k, const std::vector<Matrix>& gradients) {
    const Product& product = cell_.product[k];
    const int64_t m = shape_.width(product.to), n = shape_.width(product.from);
    const int64_t column = shape_.gradients.offset[cell_.slots() + k] - shape_.gradients.offset[0];
    Matrix operand{};
    for (int s = source; s < cell_.streams; ++s) {
      T* dw = p_.dw[s - source].matrix[product.matrix];
      if (!dw) continue;
      if (!operand.data && product.state >= 0) {
        operand = state_before(b, source * cell_.states.count + product.state);
      } else if (!operand.data) {
        const int64_t saved = shape_.record.offset[product.saved[source]];
        operand = operand_[0].of(p_.record.from(b.rows.begin, saved), b.rows.size(), n, stream_);
      }
      add(b, operand_[0].at(gradients[s], 0, column), operand, m, n, {dw, n}, m * n, adds(b, dw));
    }
  }

  Matrix state_before(const Block& b, int k) const {
    const int stream = k / cell_.states.count, i = k % cell_.states.count;
    const int64_t width = shape_.state_width(k);
    const int recorded = cell_.saved.count + stream * (cell_.states.count - 1) + i - 1;
    const Rows<const T> later =
        i == 0 ? Rows<const T>(p_.y[stream]) : p_.record.from(0, shape_.record.offset[recorded]);
    states_before<T>({p_.steps.T, p_.steps.N, offsets_, p_.steps.reverse, p_.steps.scanned}, b.rows.begin,
                     b.rows.size(), width, later, {p_.h0[k], width}, {before_, width}, stream_);
    return operand_[0].of({before_, width}, b.rows.size(), width, stream_);
  }

  // Of biases and parameters, from sums of the gradients as they are.
  void add_vectors(const Block& b, int s, Rows<const T> gradients) {
    const int64_t H = shape_.H();
    const auto add = [&](int64_t column, int64_t columns, T* sums, int64_t stride) {
      if (columns == 0) return;
      column_sums<T>(p_.samples, b.rows.size(), columns, gradients.from(0, column), {sums, stride}, !b.first, stream_);
    };
    const Weights<T>& dw = p_.dw[s];
    if (dw.b_ih) add(0, shape_.gate_columns(), dw.b_ih, shape_.gate_columns());
    if (dw.b_hh) {
      add(0, cell_.summed * H, dw.b_hh, shape_.recurrent_columns());
      add(shape_.gate_columns(), cell_.apart * H, dw.b_hh + cell_.summed * H, shape_.recurrent_columns());
    }
    for (int k = 0; k < cell_.params.count; ++k) {
      const int number = cell_.slots() + cell_.products + k;
      const int64_t width = shape_.width(cell_.params.width[k]);
      if (dw.param[k]) add(shape_.gradients.offset[number] - shape_.gradients.offset[0], width, dw.param[k], width);
    }
  }

  const ScanBackward<T>& p_;
  const Shape& shape_ = p_.shape;
  const CellShape& cell_ = *shape_.cell;
  const Stream stream_;
  std::deque<Operand<T>> gradients_, operand_;  // of each stream; one for all that the gradients meet
  std::set<const T*> begun_;
  T* before_ = nullptr;
  int64_t* offsets_ = nullptr;
};

}  // namespace rnnext::cuda
