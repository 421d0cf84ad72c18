// The exponential and what is made of it. Results below the smallest normal number may be zero.
#pragma once

#include "cells/math_basic.h"

namespace rnnext::RNNEXT_ISA {

// Adding `round` (1.5 times 2 to the number of mantissa bits) to a value leaves its nearest integer in the low bits;
// shifted into the exponent field it becomes that power of two. Arguments are cut where that power is 0 or e^x infinite.
// Above `top` the power of two may be infinite where e^x is not: half of it is taken, and the result doubled.
template <class V, class T = typename V::Scalar>
struct Exponent;

template <class V>
struct Exponent<V, float> {
  static constexpr float lowest = -88.0f, top = 88.0f, highest = 88.8f, tanh_saturates = 20.0f;
  static constexpr float log2e = 1.44269504f, round = 12582912.0f;
  static constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
  RNNEXT_COEFFICIENTS(float, taylor, 1.f / 5040, 1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2)
};

template <class V>
struct Exponent<V, double> {
  static constexpr double lowest = -709.0, top = 709.0, highest = 709.9, tanh_saturates = 40.0;
  static constexpr double log2e = 1.4426950408889634, round = 6755399441055744.0;
  static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
  RNNEXT_COEFFICIENTS(double, taylor, 1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880,
                      1. / 40320, 1. / 5040, 1. / 720, 1. / 120, 1. / 24, 1. / 6, 1. / 2)
};

// x = n ln2 + r with |r| <= ln2 / 2
template <class V>
struct ExpArgument {
  V shifted;  // n in the low bits
  V r;
};

template <class V>
RNNEXT_INLINE ExpArgument<V> exp_argument(V x) {
  using E = Exponent<V>;
  V shifted = fma(x, V(E::log2e), V(E::round));
  V n = shifted - V(E::round);
  return {shifted, fma(n, V(-E::ln2_low), fma(n, V(-E::ln2_high), x))};
}

// e^x - one, from x's parts; one: 0, 1 or -1. The Taylor series of e^r - 1 is exact to the last digit.
template <class V>
RNNEXT_INLINE V exp_less(ExpArgument<V> x, V one) {
  V p = fma(polynomial(x.r, Exponent<V>::taylor()), x.r * x.r, x.r);
  V scale = V::from_bits((x.shifted.bits() + Format<V>::bias) << Format<V>::mantissa);
  return fma(scale, p, scale - one);
}

// e^(x + low) - one, for any x; low: what x lacks to be exact, of no weight in n.
template <class V>
RNNEXT_INLINE V exp_any(V x, V low, V one) {
  using E = Exponent<V>;
  x = select(x < V(E::lowest), V(E::lowest), x);
  x = select(x > V(E::highest), V(E::highest), x);
  auto top = x > V(E::top);
  ExpArgument<V> a = exp_argument(x);
  a.shifted = select(top, a.shifted - V(1), a.shifted);
  a.r = a.r + low;
  V y = exp_less(a, one);
  return select(top, y + y, y);
}

template <class V>
RNNEXT_INLINE V exp(V x) {
  return exp_any(x, V(-0.0f), V(0));
}

template <class V>
RNNEXT_INLINE V expm1(V x) {
  return copysign(exp_any(x, V(-0.0f), V(1)), x);
}

// 1 / (1 + e^-x); zero, not subnormal, where e^-x is above `top`.
template <class V>
RNNEXT_INLINE V sigmoid(V x) {
  using E = Exponent<V>;
  x = -x;
  x = select(x < V(E::lowest), V(E::lowest), x);
  x = select(x > V(E::top), V(E::highest), x);
  return V(1) / exp_less(exp_argument(x), V(-1));
}

// (e^2x - 1) / (e^2x + 1), with e^2x - 1 computed as such: no digit is lost near zero.
template <class V>
RNNEXT_INLINE V tanh(V x) {
  const V limit(Exponent<V>::tanh_saturates);
  V size = abs(x);
  size = select(size > limit, limit, size);
  V em1 = exp_less(exp_argument(size + size), V(1));
  return copysign(em1 / (em1 + V(2)), x);
}

// -log(1 - erf x) / x as a quotient of polynomials, fitted by weighted least squares to 2^-32 and 2^-59 between 0 and
// `saturates`. All coefficients are positive: their sums lose nothing.
template <class V, class T = typename V::Scalar>
struct ErrorFunction;

template <class V>
struct ErrorFunction<V, float> {
  static constexpr float saturates = 4.0f;
  RNNEXT_COEFFICIENTS(float, above, 0.037239463174180255f, 0.28060302561987247f, 0.91431271809559983f,
                      1.5175140182777061f, 1.1283791673404372f)
  RNNEXT_COEFFICIENTS(float, below, 0.037256195133798056f, 0.27876104809946917f, 0.78067222595036326f, 1.0f)
};

template <class V>
struct ErrorFunction<V, double> {
  static constexpr double saturates = 6.0;
  RNNEXT_COEFFICIENTS(double, above, 0.00011823770995531876492, 0.0033656163663541875509, 0.034945922412722754838,
                      0.19975123419914784077, 0.72000098583583329926, 1.7136274863178153975, 2.6691378461691809373,
                      2.5227400076439307666, 1.1283791670955125719)
  RNNEXT_COEFFICIENTS(double, below, 0.00011825875301217233138, 0.0033631756480740323604, 0.034387242241926894144,
                      0.18863780435793581293, 0.63225428928858629635, 1.3313218611369187201, 1.6715305371431910902, 1.0)
};

template <class V>
RNNEXT_INLINE V erf(V x) {
  using E = ErrorFunction<V>;
  const V limit(E::saturates);
  V size = abs(x);
  size = select(size > limit, limit, size);
  V minus_log = size * (polynomial(size, E::above()) / polynomial(size, E::below()));
  return copysign(exp_less(exp_argument(-minus_log), V(1)), x);
}

}  // namespace rnnext::RNNEXT_ISA
