// The stages of a cell's step for a tile of rows and units: loads, the cell's equations, stores.
//
// A cell reads and writes through `u`, one vector of units of one row. Reads are loads where they stand; new states and
// gradients of old ones are stored at the end of a stage, so that they may be computed in any order.
#pragma once

#include "cpu/simd.h"

#include "cells/math.h"
#include "engine/cell.h"

namespace rnnext::RNNEXT_ISA {

// Sizes of arrays must not be zero.
constexpr int at_least_one(int n) {
  return n > 0 ? n : 1;
}

// What forward and backward have in common. Gates, states, parameters and products count the first stream's, then the
// second's.
template <class T, class Cell, class Step>
class Units {
 public:
  using V = Vec<T>;
  static constexpr const CellShape& shape = Cell::shape;

  RNNEXT_INLINE Units(const Step& step, int64_t row, int64_t unit, int64_t n) : p(step), row(row), unit(unit), n(n) {}

  RNNEXT_INLINE V state(int k) const { return load(p.state[k][row], shape.state_width(k)); }
  RNNEXT_INLINE V param(int k) const { return load(p.param[k], shape.param_width(k)); }
  RNNEXT_INLINE V noise(int k) const { return load(p.noise[k][row], shape.noise[k].width); }
  RNNEXT_INLINE V size(int k) const { return V(T(p.sizes[k])); }
  RNNEXT_INLINE V total(int k) const { return V(p.totals[row][k]); }

 protected:
  RNNEXT_INLINE V load(const T* values, int8_t width) const {
    return width == kOne ? V(*values) : V::load(values + unit, n);
  }
  RNNEXT_INLINE void store(V v, T* values) const { v.store(values + unit, n); }

  const Step& p;
  const int64_t row, unit, n;
};

// Row totals of a stage, one vector of partial sums each.
template <class T, int First, int Count>
struct Totals {
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
  using Base::n, Base::p, Base::row, Base::unit, Base::load;
  static constexpr CellShape s = Cell::shape;

 public:
  using V = Vec<T>;
  using RowTotals = Totals<T, s.forward[Stage].first_total, s.forward[Stage].totals>;

  RNNEXT_INLINE ForwardUnits(const StepForward<T>& step, int64_t row, int64_t unit, int64_t n, RowTotals& totals)
      : Base(step, row, unit, n), totals_(totals) {
    for (bool& written : written_) written = false;
  }

  // A summed gate; the input's part of an apart or input gate; the recurrent part of an apart gate.
  RNNEXT_INLINE V a(int g) const { return part(p.x, g) + part(p.r, g) + bias(g, g % s.gates()); }
  RNNEXT_INLINE V x(int g) const { return part(p.x, g) + bias(g, g % s.gates()); }
  RNNEXT_INLINE V r(int g) const { return part(p.r, g) + bias(g, s.gates() + g % s.gates() - s.summed); }
  RNNEXT_INLINE V product(int k) const { return load(p.products.at(row, k), s.product[k % s.products].to); }
  RNNEXT_INLINE V value(int k) const { return load(p.values.at(row, k), s.values.width[k]); }

  RNNEXT_INLINE void next(int k, V v) {
    next_[k] = v;
    written_[k] = true;
  }
  RNNEXT_INLINE void save(int k, V v) {
    if constexpr (Keep) this->store(v, p.record.at(row, k));
  }
  RNNEXT_INLINE void put(int k, V v) { this->store(v, p.values.at(row, k)); }
  RNNEXT_INLINE void add(int k, V v) { totals_.add(k, v, n); }

  RNNEXT_INLINE void finish() const {
    int recorded = s.saved.count;
    for (int k = 0; k < s.all_states(); ++k) {
      const bool is_h = k % s.states.count == 0;
      if (written_[k]) {
        this->store(next_[k], p.state[k][row]);
        if (is_h) {
          this->store(next_[k], p.y[k / s.states.count][row]);
        } else if constexpr (Keep) {
          this->store(next_[k], p.record.at(row, recorded));
        }
      }
      recorded += !is_h;
    }
  }

 private:
  RNNEXT_INLINE V part(const Rows<const T>* parts, int g) const {
    return load(parts[g / s.gates()][row] + g % s.gates() * p.sizes[0], kHidden);
  }
  RNNEXT_INLINE V bias(int g, int slot) const { return load(p.bias[g / s.gates()] + slot * p.sizes[0], kHidden); }

  V next_[s.all_states()];
  bool written_[s.all_states()];
  RowTotals& totals_;
};

template <class T, class Cell, int Stage>
class BackwardUnits : public Units<T, Cell, StepBackward<T>> {
  using Base = Units<T, Cell, StepBackward<T>>;
  using Base::n, Base::p, Base::row, Base::unit, Base::load;
  static constexpr CellShape s = Cell::shape;

 public:
  using V = Vec<T>;
  using RowTotals = Totals<T, s.backward[Stage].first_total, s.backward[Stage].totals>;

  RNNEXT_INLINE BackwardUnits(const StepBackward<T>& step, int64_t row, int64_t unit, int64_t n, RowTotals& totals)
      : Base(step, row, unit, n), totals_(totals) {
    for (bool& written : written_) written = false;
  }

  RNNEXT_INLINE V saved(int k) const { return load(p.record.at(row, k), s.saved.width[k]); }
  // The state after the step, and its gradient.
  RNNEXT_INLINE V next(int k) const {
    const int stream = k / s.states.count, i = k % s.states.count;
    const T* values =
        i == 0 ? p.next[stream][row] : p.record.at(row, s.saved.count + stream * (s.states.count - 1) + i - 1);
    return load(values, s.state_width(k));
  }
  RNNEXT_INLINE V dnext(int k) const {
    const V carried = load(p.dstate[k][row], s.state_width(k));
    const int stream = k / s.states.count;
    if (k % s.states.count != 0 || !p.dy[stream]) return carried;
    return carried + load(p.dy[stream][row], s.state_width(k));
  }
  // The gradient of the operand of a product.
  RNNEXT_INLINE V doperand(int k) const { return load(p.operands.at(row, k), s.product[k % s.products].from); }
  RNNEXT_INLINE V value(int k) const { return load(p.values.at(row, k), s.back_values.width[k]); }

  RNNEXT_INLINE void dstate(int k, V v) {
    dstate_[k] = v;
    written_[k] = true;
  }
  // Gradients of a summed gate; of the input's part of an apart or input gate; of the recurrent part of an apart gate.
  RNNEXT_INLINE void da(int g, V v) { gradient(g / s.gates(), g % s.gates(), v); }
  RNNEXT_INLINE void dx(int g, V v) { gradient(g / s.gates(), g % s.gates(), v); }
  RNNEXT_INLINE void dr(int g, V v) { gradient(g / s.gates(), s.gates() + g % s.gates() - s.summed, v); }
  RNNEXT_INLINE void dproduct(int k, V v) { gradient(k / s.products, s.slots() + k % s.products, v); }
  RNNEXT_INLINE void dparam(int k, V v) {
    gradient(k / s.params.count, s.slots() + s.products + k % s.params.count, v);
  }
  RNNEXT_INLINE void put(int k, V v) { this->store(v, p.values.at(row, k)); }
  RNNEXT_INLINE void add(int k, V v) { totals_.add(k, v, n); }

  RNNEXT_INLINE void finish() const {
    for (int k = 0; k < s.all_states(); ++k) {
      if (written_[k]) this->store(dstate_[k], p.dstate[k][row]);
    }
  }

 private:
  RNNEXT_INLINE void gradient(int stream, int k, V v) {
    this->store(v, p.gradients.at(row, stream * s.gradients() + k));
  }

  V dstate_[s.all_states()];
  bool written_[s.all_states()];
  RowTotals& totals_;
};

template <class Units, class Step, class Work>
RNNEXT_INLINE void for_each_unit(const Step& p, Work work) {
  constexpr int64_t width = Units::V::width;
  const int64_t whole = p.begin + (p.end - p.begin) / width * width;
  for (int64_t row = 0; row < p.rows; ++row) {
    typename Units::RowTotals totals;
    const auto run = [&](int64_t unit, int64_t n) __attribute__((always_inline)) {
      Units u(p, row, unit, n, totals);
      work(u);
      u.finish();
    };
    for (int64_t unit = p.begin; unit < whole; unit += width) run(unit, width);
    if (whole < p.end) run(whole, p.end - whole);
    if (p.totals) totals.store(p.totals[row]);
  }
}

template <class T, class C, int Stage, bool Keep>
void forward_rows(const StepForward<T>& p) {
  using U = ForwardUnits<T, C, Stage, Keep>;
  for_each_unit<U>(p, [](U& u) __attribute__((always_inline)) { C::template forward<Stage>(u); });
}

template <class T, class C, int Stage>
void forward(const StepForward<T>& p) {
  p.record.rows ? forward_rows<T, C, Stage, true>(p) : forward_rows<T, C, Stage, false>(p);
}

template <class T, class C, int Stage>
void backward(const StepBackward<T>& p) {
  using U = BackwardUnits<T, C, Stage>;
  for_each_unit<U>(p, [](U& u) __attribute__((always_inline)) { C::template backward<Stage>(u); });
}

template <class T, class C, int Stage = 0>
constexpr void fill_forward(Cell<T>& cell) {
  if constexpr (Stage < C::shape.forward_stages) {
    cell.forward[Stage] = &forward<T, C, Stage>;
    fill_forward<T, C, Stage + 1>(cell);
  }
}

template <class T, class C, int Stage = 0>
constexpr void fill_backward(Cell<T>& cell) {
  if constexpr (Stage < C::shape.backward_stages) {
    cell.backward[Stage] = &backward<T, C, Stage>;
    fill_backward<T, C, Stage + 1>(cell);
  }
}

template <class T, class C>
constexpr Cell<T> cell() {
  Cell<T> result{C::shape, {}, {}};
  fill_forward<T, C>(result);
  fill_backward<T, C>(result);
  return result;
}

}  // namespace rnnext::RNNEXT_ISA
