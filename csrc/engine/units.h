// What a cell's equations are written over: `u`, one vector of units of one row.
//
// Reads are loads where they stand; new states and gradients of old ones are stored at the end of a stage, so that they
// may be computed in any order. Whoever includes this first declares Vec, RNNEXT_INLINE and RNNEXT_CONSTANT, as for cells/math.h.
#pragma once

#include "cells/math.h"
#include "engine/cell.h"

namespace rnnext::RNNEXT_ISA {

// Sizes of arrays must not be zero.
constexpr int at_least_one(int n) {
  return n > 0 ? n : 1;
}

// Where device code, too, can read it.
template <class Cell>
RNNEXT_CONSTANT constexpr CellShape shape_of = Cell::shape;

// What forward and backward have in common. Gates, states, parameters and products count the first stream's, then the
// second'shape_of<Cell>.
template <class T, class Cell, class Step>
class Units {
 public:
  using V = Vec<T>;
  static constexpr bool kMixesSequences = Cell::shape.mixes_sequences();

  // One row; or of a cell that adds up over the sequences of a step, the rows row .. end one after the other, with what is
  // the same for all of them computed once:
  //     for (; u.has_row(); u.next_row()) { .. }
  RNNEXT_INLINE Units(const Step& step, int64_t row, int64_t unit, int64_t n, int64_t end)
      : p(step), row(row), end(end), unit(unit), n(n) {
    for (int k = 0; k < kSums; ++k) sums_[k] = V(T(0)), summed_[k] = false;
  }

  RNNEXT_INLINE V state(int k) const { return load(p.state[k][row], shape_of<Cell>.state_width(k)); }
  RNNEXT_INLINE V param(int k) const { return load(p.param[k], shape_of<Cell>.param_width(k)); }
  RNNEXT_INLINE V noise(int k) const { return load(p.noise[k][row], shape_of<Cell>.noise[k].width); }
  RNNEXT_INLINE V size(int k) const { return V(T(p.sizes[k])); }
  RNNEXT_INLINE V total(int k) const { return V(p.totals[row][k]); }

  RNNEXT_INLINE bool has_row() const { return row < end; }
  RNNEXT_INLINE V batch() const { return V(T(p.batch)); }
  RNNEXT_INLINE V batch_sum(int k) const { return load(p.batch_sums.at(k), sum_width(k)); }
  RNNEXT_INLINE void add_batch(int k, V v) {
    sums_[k] = sums_[k] + v;
    summed_[k] = true;
  }

 protected:
  RNNEXT_INLINE V load(const T* values, int8_t width) const {
    return width == kOne ? V(*values) : V::load(values + unit, n);
  }
  RNNEXT_INLINE void store(V v, T* values) const { v.store(values + unit, n); }

  static constexpr bool kIsForward = std::is_same_v<Step, StepForward<T>>;
  static constexpr int kSums =
      at_least_one(kIsForward ? Cell::shape.batch_sums.count : Cell::shape.back_batch_sums.count);

  RNNEXT_INLINE static int8_t sum_width(int k) {
    return kIsForward ? shape_of<Cell>.batch_sums.width[k] : shape_of<Cell>.back_batch_sums.width[k];
  }
  RNNEXT_INLINE void store_sums() const {
    for (int k = 0; k < kSums; ++k) {
      if (!summed_[k]) continue;
      // Nothing flows back through sums that were given.
      if (!p.given_sums) this->store(sums_[k], p.batch_sums.at(k));
      if (p.given_sums && !kIsForward) this->store(V(T(0)), p.batch_sums.at(k));
    }
  }

  const Step& p;
  int64_t row;
  const int64_t end, unit, n;

 private:
  V sums_[kSums];
  bool summed_[kSums];
};

// Row totals of a stage, one vector of partial sums each.
template <class T, int First, int Count>
struct Totals {
  static constexpr int count = Count;

  Vec<T> sums[at_least_one(Count)];

  RNNEXT_INLINE Totals() {
    for (int k = 0; k < Count; ++k) sums[k] = Vec<T>(T(0));
  }
  RNNEXT_INLINE void add(int k, Vec<T> v, int64_t n) {
    if (n < Vec<T>::width) v = select(Vec<T>::lanes() < Vec<T>(T(n)), v, Vec<T>(T(0)));
    sums[k - First] = sums[k - First] + v;
  }
  RNNEXT_INLINE void store(T* totals) const {
    for (int k = 0; k < Count; ++k) totals[First + k] = sum_of(sums[k]);
  }
};

template <class T, class Cell, int Stage, bool Keep>
class ForwardUnits : public Units<T, Cell, StepForward<T>> {
  using Base = Units<T, Cell, StepForward<T>>;

 protected:
  using Base::n, Base::p, Base::row, Base::unit, Base::load;

 public:
  using V = Vec<T>;
  using RowTotals = Totals<T, shape_of<Cell>.forward[Stage].first_total, shape_of<Cell>.forward[Stage].totals>;

  RNNEXT_INLINE ForwardUnits(const StepForward<T>& step, int64_t row, int64_t unit, int64_t n, RowTotals& totals,
                             int64_t end = 0)
      : Base(step, row, unit, n, end), totals_(totals) {
    for (bool& written : written_) written = false;
  }

  RNNEXT_INLINE void next_row() {
    finish_row();
    ++this->row;
  }

  // A summed gate; the input's part of an apart or input gate; the recurrent part of an apart gate.
  RNNEXT_INLINE V a(int g) const { return part(p.x, g) + part(p.r, g) + bias(g, g % shape_of<Cell>.gates()); }
  RNNEXT_INLINE V x(int g) const { return part(p.x, g) + bias(g, g % shape_of<Cell>.gates()); }
  RNNEXT_INLINE V r(int g) const {
    return part(p.r, g) + bias(g, shape_of<Cell>.gates() + g % shape_of<Cell>.gates() - shape_of<Cell>.summed);
  }
  RNNEXT_INLINE V product(int k) const {
    return load(p.products.at(row, k), shape_of<Cell>.product[k % shape_of<Cell>.products].to);
  }
  RNNEXT_INLINE V value(int k) const { return load(p.values.at(row, k), shape_of<Cell>.values.width[k]); }

  RNNEXT_INLINE void next(int k, V v) {
    next_[k] = v;
    written_[k] = true;
  }
  RNNEXT_INLINE void save(int k, V v) {
    if constexpr (Keep) this->store(v, p.record.at(row, k));
  }
  RNNEXT_INLINE void put(int k, V v) { this->store(v, p.values.at(row, k)); }
  RNNEXT_INLINE void add(int k, V v) { totals_.add(k, v, n); }

  // Once all rows are done.
  RNNEXT_INLINE void finish() const { shape_of<Cell>.mixes_sequences() ? this->store_sums() : finish_row(); }

  RNNEXT_INLINE void finish_row() const {
    int recorded = shape_of<Cell>.saved.count;
    for (int k = 0; k < shape_of<Cell>.all_states(); ++k) {
      const bool is_h = k % shape_of<Cell>.states.count == 0;
      if (written_[k]) {
        this->store(next_[k], p.state[k][row]);
        if (is_h) {
          this->store(next_[k], p.y[k / shape_of<Cell>.states.count][row]);
        } else if constexpr (Keep) {
          this->store(next_[k], p.record.at(row, recorded));
        }
      }
      recorded += !is_h;
    }
  }

 protected:
  RNNEXT_INLINE V part(const Rows<const T>* parts, int g) const {
    return load(parts[g / shape_of<Cell>.gates()][row] + g % shape_of<Cell>.gates() * p.sizes[0], kHidden);
  }
  RNNEXT_INLINE V bias(int g, int slot) const {
    return load(p.bias[g / shape_of<Cell>.gates()] + slot * p.sizes[0], kHidden);
  }

 private:
  V next_[shape_of<Cell>.all_states()]{};
  bool written_[shape_of<Cell>.all_states()];
  RowTotals& totals_;
};

// Where `SumParams`, gradients of parameters are added up over the steps in place of being written for each.
template <class T, class Cell, int Stage, bool SumParams = false>
class BackwardUnits : public Units<T, Cell, StepBackward<T>> {
  using Base = Units<T, Cell, StepBackward<T>>;

 protected:
  using Base::n, Base::p, Base::row, Base::unit, Base::load;

 public:
  using V = Vec<T>;
  using RowTotals = Totals<T, shape_of<Cell>.backward[Stage].first_total, shape_of<Cell>.backward[Stage].totals>;

  RNNEXT_INLINE BackwardUnits(const StepBackward<T>& step, int64_t row, int64_t unit, int64_t n, RowTotals& totals,
                              int64_t end = 0)
      : Base(step, row, unit, n, end), totals_(totals) {
    for (bool& written : written_) written = false;
  }

  RNNEXT_INLINE void next_row() {
    finish_row();
    ++this->row;
  }

  RNNEXT_INLINE V forward_batch_sum(int k) const {
    return load(p.forward_sums.at(k), shape_of<Cell>.batch_sums.width[k]);
  }

  RNNEXT_INLINE V saved(int k) const { return load(p.record.at(row, k), shape_of<Cell>.saved.width[k]); }
  // The state after the step, and its gradient.
  RNNEXT_INLINE V next(int k) const {
    const int stream = k / shape_of<Cell>.states.count, i = k % shape_of<Cell>.states.count;
    const T* values =
        i == 0 ? p.next[stream][row]
               : p.record.at(row, shape_of<Cell>.saved.count + stream * (shape_of<Cell>.states.count - 1) + i - 1);
    return load(values, shape_of<Cell>.state_width(k));
  }
  RNNEXT_INLINE V dnext(int k) const {
    const V carried = load(p.dstate[k][row], shape_of<Cell>.state_width(k));
    const int stream = k / shape_of<Cell>.states.count;
    if (k % shape_of<Cell>.states.count != 0 || !p.dy[stream]) return carried;
    return carried + load(p.dy[stream][row], shape_of<Cell>.state_width(k));
  }
  // The gradient of the operand of a product.
  RNNEXT_INLINE V doperand(int k) const {
    return load(p.operands.at(row, k), shape_of<Cell>.product[k % shape_of<Cell>.products].from);
  }
  RNNEXT_INLINE V value(int k) const { return load(p.values.at(row, k), shape_of<Cell>.back_values.width[k]); }

  RNNEXT_INLINE void dstate(int k, V v) {
    dstate_[k] = v;
    written_[k] = true;
  }
  // Gradients of a summed gate; of the input's part of an apart or input gate; of the recurrent part of an apart gate.
  RNNEXT_INLINE void da(int g, V v) { gradient(g / shape_of<Cell>.gates(), g % shape_of<Cell>.gates(), v); }
  RNNEXT_INLINE void dx(int g, V v) { gradient(g / shape_of<Cell>.gates(), g % shape_of<Cell>.gates(), v); }
  RNNEXT_INLINE void dr(int g, V v) {
    gradient(g / shape_of<Cell>.gates(), shape_of<Cell>.gates() + g % shape_of<Cell>.gates() - shape_of<Cell>.summed,
             v);
  }
  RNNEXT_INLINE void dproduct(int k, V v) {
    gradient(k / shape_of<Cell>.products, shape_of<Cell>.slots() + k % shape_of<Cell>.products, v);
  }
  RNNEXT_INLINE void dparam(int k, V v) {
    if constexpr (SumParams) {
      T* sums = p.param_sums.at(row, k);
      return this->store(load(sums, shape_of<Cell>.param_width(k)) + v, sums);
    }
    gradient(k / shape_of<Cell>.params.count,
             shape_of<Cell>.slots() + shape_of<Cell>.products + k % shape_of<Cell>.params.count, v);
  }
  RNNEXT_INLINE void put(int k, V v) { this->store(v, p.values.at(row, k)); }
  RNNEXT_INLINE void add(int k, V v) { totals_.add(k, v, n); }

  RNNEXT_INLINE void finish() const { shape_of<Cell>.mixes_sequences() ? this->store_sums() : finish_row(); }

  RNNEXT_INLINE void finish_row() const {
    for (int k = 0; k < shape_of<Cell>.all_states(); ++k) {
      if (written_[k]) this->store(dstate_[k], p.dstate[k][row]);
    }
  }

 private:
  RNNEXT_INLINE void gradient(int stream, int k, V v) {
    this->store(v, p.gradients.at(row, stream * shape_of<Cell>.gradients() + k));
  }

  V dstate_[shape_of<Cell>.all_states()]{};
  bool written_[shape_of<Cell>.all_states()];
  RowTotals& totals_;
};

}  // namespace rnnext::RNNEXT_ISA
