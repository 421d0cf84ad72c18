// The weights of a scan as operands of products, each rounded once.
#pragma once

#include <deque>

#include "cuda/memory.h"
#include "engine/step.h"

namespace rnnext::cuda {

template <class T>
class WeightOperands {
 public:
  WeightOperands(Arena& arena, const Shape& shape, Operands type) : shape_(shape) {
    for (int s = 0; s < cell().streams; ++s) {
      ih_.emplace_back(arena, type, shape.gate_columns(), shape.C);
      hh_.emplace_back(arena, type, shape.recurrent_columns(), shape.head_width());
      for (int m = 0; m < cell().matrices; ++m) {
        const Product& product = product_with(cell(), m);
        own_.emplace_back(arena, type, shape.width(product.to), shape.width(product.from));
      }
    }
  }

  // `input`, `recurrent`: whether W_ih and W_hh will be asked for.
  void prepare(const Weights<const T>* weights, bool input, bool recurrent, Stream stream) {
    for (int s = 0; s < cell().streams; ++s) {
      const Weights<const T>& w = weights[s];
      if (input) ready_ih_.push_back(ih_[s].of({w.w_ih, shape_.C}, shape_.gate_columns(), stream));
      if (recurrent && cell().recurrent_gates()) {
        ready_hh_.push_back(hh_[s].of({w.w_hh, shape_.head_width()}, shape_.recurrent_columns(), stream));
      }
      for (int m = 0; m < cell().matrices; ++m) {
        const Product& product = product_with(cell(), m);
        const int64_t from = shape_.width(product.from);
        ready_own_.push_back(own_[s * cell().matrices + m].of({w.matrix[m], from}, shape_.width(product.to), stream));
      }
    }
  }

  // Of a stream.
  Matrix ih(int s) const { return ready_ih_[s]; }
  Matrix hh(int s, int64_t first_row = 0) const { return hh_[s].at(ready_hh_[s], first_row, 0); }
  Matrix own(int s, int m) const { return ready_own_[s * cell().matrices + m]; }

 private:
  const CellShape& cell() const { return *shape_.cell; }

  const Shape& shape_;
  std::deque<Operand<T>> ih_, hh_, own_;  // which do not move
  std::vector<Matrix> ready_ih_, ready_hh_, ready_own_;
};

}  // namespace rnnext::cuda
