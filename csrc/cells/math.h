// Elementwise functions of the cells, written once over a value type V: a SIMD vector on the CPU.
//
// Whoever includes this first declares V with arithmetic, comparison and select(mask, a, b); Exponent<V> (constants, and
// 2^n from a rounded n); and RNNEXT_INLINE. On the CPU that is cpu/simd.h.
// Each function keeps NaN and saturates without overflow; the largest errors, in units in the last place, are
// held by tests/test_math.py.
#pragma once

namespace rnnext::RNNEXT_ISA {

// a * b + c; contracted to one rounding where the target has it.
template <class V>
RNNEXT_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}

template <class V>
struct Exp {
  V scale;  // 2^n
  V p;      // e^r - 1, so that e^x = scale + scale * p
};

// x = n ln2 + r with |r| <= ln2 / 2; the Taylor series of e^r - 1 is exact to the last digit on that interval.
template <class V>
RNNEXT_INLINE Exp<V> exp_parts(V x) {
  using E = Exponent<V>;
  x = select(x < V(E::lowest), V(E::lowest), x);
  x = select(x > V(E::highest), V(E::highest), x);
  V shifted = fma(x, V(E::log2e), V(E::round));  // n in the low bits
  V n = shifted - V(E::round);
  V r = fma(n, V(-E::ln2_low), fma(n, V(-E::ln2_high), x));
  V q = V(E::taylor[0]);
  for (int k = 1; k < E::terms; ++k) q = fma(q, r, V(E::taylor[k]));
  return {E::power_of_two(shifted), fma(q, r * r, r)};
}

template <class V>
RNNEXT_INLINE V exp(V x) {
  Exp<V> e = exp_parts(x);
  return fma(e.scale, e.p, e.scale);
}

template <class V>
RNNEXT_INLINE V expm1(V x) {
  Exp<V> e = exp_parts(x);
  return fma(e.scale, e.p, e.scale - V(1));
}

template <class V>
RNNEXT_INLINE V sigmoid(V x) {
  return V(1) / (V(1) + exp(-x));
}

// (e^2x - 1) / (e^2x + 1), with e^2x - 1 computed as such: no digit is lost near zero.
template <class V>
RNNEXT_INLINE V tanh(V x) {
  const V limit = V(Exponent<V>::tanh_saturates);
  V em1 = expm1(V(2) * select(x > limit, limit, x));
  return em1 / (em1 + V(2));
}

template <class V>
RNNEXT_INLINE V relu(V x) {
  return select(x < V(0), V(0), x);
}

}  // namespace rnnext::RNNEXT_ISA
