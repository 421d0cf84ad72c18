// Sine and cosine, to the last digits for |x| <= 1e5 (float) and 1e9 (double). Beyond, where neighbouring values are
// further apart than 0.007 and 1e-7, they are NaN, as they are for infinity.
#pragma once

#include "cells/math_basic.h"

namespace rnnext::RNNEXT_ISA {

// `pieces` add up to pi/2: a multiple of each but the last within the limit is exact, also where a product and a sum are
// rounded apart (Cody and Waite 1980). Taylor series of (sin r - r) / r^3 and (cos r - 1 + r^2/2) / r^4 in r^2.
template <class V, class T = typename V::Scalar>
struct Circle;

template <class V>
struct Circle<V, float> {
  static constexpr float limit = 1e5f, two_over_pi = 0.636619772f, round = 12582912.0f;
  RNNEXT_COEFFICIENTS(float, pieces, 1.5703125f, 4.84466553e-4f, -6.40749931e-7f, 9.89530235e-10f, 2.55795385e-12f,
                      5.39030295e-15f)
  RNNEXT_COEFFICIENTS(float, sine, 1.f / 362880, -1.f / 5040, 1.f / 120, -1.f / 6)
  RNNEXT_COEFFICIENTS(float, cosine, -1.f / 3628800, 1.f / 40320, -1.f / 720, 1.f / 24)
};

template <class V>
struct Circle<V, double> {
  static constexpr double limit = 1e9, two_over_pi = 0.6366197723675814, round = 6755399441055744.0;
  RNNEXT_COEFFICIENTS(double, pieces, 1.570796251296997, 7.549789415861596e-08, 5.390302529957765e-15,
                      3.2820036682434026e-22, -1.2536990206932499e-29)
  RNNEXT_COEFFICIENTS(double, sine, 1. / 355687428096000, -1. / 1307674368000, 1. / 6227020800, -1. / 39916800,
                      1. / 362880, -1. / 5040, 1. / 120, -1. / 6)
  RNNEXT_COEFFICIENTS(double, cosine, 1. / 20922789888000, -1. / 87178291200, 1. / 479001600, -1. / 3628800, 1. / 40320,
                      -1. / 720, 1. / 24)
};

// sin(x + turn pi/2) for x >= 0
template <class V>
RNNEXT_INLINE V sin_turned(V x, int turn) {
  using C = Circle<V>;
  V shifted = fma(x, V(C::two_over_pi), V(C::round));
  V n = shifted - V(C::round);
  V r = x;
  for (auto piece : C::pieces()) r = fma(n, V(-piece), r);
  V z = r * r;
  V sine = fma(r * z, polynomial(z, C::sine()), r);
  V cosine = fma(z * z, polynomial(z, C::cosine()), fma(z, V(-0.5f), V(1)));

  const auto quarter = shifted.bits() + static_cast<unsigned>(turn);  // n + turn in the low bits
  const auto negative = (quarter >> 1) << (Format<V>::bits - 1);
  V value = V::from_bits(select((quarter & 1) != 0, cosine, sine).bits() ^ negative);
  return select(x <= V(C::limit), value, not_a_number<V>());
}

template <class V>
RNNEXT_INLINE V sin(V x) {
  V value = sin_turned(abs(x), 0);
  return V::from_bits(value.bits() ^ (x.bits() & V(-0.0f).bits()));
}

template <class V>
RNNEXT_INLINE V cos(V x) {
  return sin_turned(abs(x), 1);
}

}  // namespace rnnext::RNNEXT_ISA
