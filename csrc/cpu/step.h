// The stages of a cell's step for a tile of rows and units: loads, the cell's equations, stores.
#pragma once

#include "cpu/simd.h"

#include "engine/units.h"

namespace rnnext::RNNEXT_ISA {

template <class Units, class Step, class Work>
RNNEXT_INLINE void for_each_unit(const Step& p, Work work) {
  constexpr int64_t width = Units::V::width;
  const int64_t whole = p.begin + (p.end - p.begin) / width * width;
  if constexpr (Units::kMixesSequences) {
    typename Units::RowTotals none;
    const auto run = [&](int64_t unit, int64_t n) __attribute__((always_inline)) {
      Units u(p, 0, unit, n, none, p.rows);
      work(u);
      u.finish();
    };
    for (int64_t unit = p.begin; unit < whole; unit += width) run(unit, width);
    if (whole < p.end) run(whole, p.end - whole);
    return;
  }
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
  using U = BackwardUnits<T, C, Stage, true>;
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
