// A step of a cell for a tile of rows and units: loads, the cell's equations, stores.
#pragma once

#include "cpu/simd.h"

#include "cells/math.h"
#include "engine/cell.h"

namespace rnnext::RNNEXT_ISA {

// Sizes of arrays must not be zero.
constexpr int at_least_one(int n) {
  return n > 0 ? n : 1;
}

template <class T, class C, bool Keep>
RNNEXT_INLINE void forward_row(const StepForward<T>& p, int64_t row, int64_t u, int64_t n) {
  using V = Vec<T>;
  constexpr CellShape s = C::shape;
  const T* x = p.x[row] + u;
  const T* r = p.r[row] + u;
  const T* b = p.bias + u;
  V a[s.slots()];
  for (int g = 0; g < s.summed; ++g) {
    a[g] = V::load(x + g * p.hidden, n) + V::load(r + g * p.hidden, n) + V::load(b + g * p.hidden, n);
  }
  for (int g = s.summed; g < s.gates(); ++g) {
    const int recurrent = g + s.apart;
    a[g] = V::load(x + g * p.hidden, n) + V::load(b + g * p.hidden, n);
    a[recurrent] = V::load(r + g * p.hidden, n) + V::load(b + recurrent * p.hidden, n);
  }
  V state[s.states], next[s.states], saved[at_least_one(s.saved)];
  for (int k = 0; k < s.states; ++k) state[k] = V::load(p.state[k][row] + u, n);
  C::forward(a, state, next, saved);
  for (int k = 0; k < s.states; ++k) next[k].store(p.state[k][row] + u, n);
  next[0].store(p.y[row] + u, n);
  if constexpr (Keep) {
    T* record = p.record[row] + u;
    for (int k = 0; k < s.saved; ++k) saved[k].store(record + k * p.hidden, n);
    for (int k = 1; k < s.states; ++k) next[k].store(record + (s.saved + k - 1) * p.hidden, n);
  }
}

template <class T, class C, bool Keep>
void forward_rows(const StepForward<T>& p) {
  constexpr int64_t width = Vec<T>::width;
  const int64_t whole = p.units / width * width;
  for (int64_t row = 0; row < p.rows; ++row) {
    for (int64_t u = 0; u < whole; u += width) forward_row<T, C, Keep>(p, row, u, width);
    if (whole < p.units) forward_row<T, C, Keep>(p, row, whole, p.units - whole);
  }
}

template <class T, class C>
void forward(const StepForward<T>& p) {
  p.record ? forward_rows<T, C, true>(p) : forward_rows<T, C, false>(p);
}

template <class T, class C>
RNNEXT_INLINE void backward_row(const StepBackward<T>& p, int64_t row, int64_t u, int64_t n) {
  using V = Vec<T>;
  constexpr CellShape s = C::shape;
  const T* record = p.record[row] + u;
  V saved[at_least_one(s.saved)], state[s.states], next[s.states], dnext[s.states], dstate[s.states], da[s.slots()];
  for (int k = 0; k < s.saved; ++k) saved[k] = V::load(record + k * p.hidden, n);
  for (int k = 0; k < s.states; ++k) {
    state[k] = V::load(p.state[k][row] + u, n);
    next[k] = k == 0 ? V::load(p.next[row] + u, n) : V::load(record + (s.saved + k - 1) * p.hidden, n);
    dnext[k] = V::load(p.dstate[k][row] + u, n);
  }
  if (p.dy) dnext[0] = dnext[0] + V::load(p.dy[row] + u, n);
  C::backward(saved, state, next, dnext, dstate, da);
  for (int k = 0; k < s.states; ++k) dstate[k].store(p.dstate[k][row] + u, n);
  for (int k = 0; k < s.slots(); ++k) da[k].store(p.da[row] + u + k * p.hidden, n);
}

template <class T, class C>
void backward(const StepBackward<T>& p) {
  constexpr int64_t width = Vec<T>::width;
  const int64_t whole = p.units / width * width;
  for (int64_t row = 0; row < p.rows; ++row) {
    for (int64_t u = 0; u < whole; u += width) backward_row<T, C>(p, row, u, width);
    if (whole < p.units) backward_row<T, C>(p, row, whole, p.units - whole);
  }
}

template <class T, class C>
constexpr Cell<T> cell() {
  return {C::shape, &forward<T, C>, &backward<T, C>};
}

}  // namespace rnnext::RNNEXT_ISA
