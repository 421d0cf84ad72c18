// The logarithm, also of 1 + x.
#pragma once

#include "cells/math_exp.h"

namespace rnnext::RNNEXT_ISA {

// log(1+f) = 2s + 2/3 s^3 + 2/5 s^5 + ... with s = f / (2+f): a series in s^2 that is exact to the last digit for 1 + f
// between sqrt(1/2) and sqrt(2). The first part of 2/3 has half of the digits, for pow.
template <class V, class T = typename V::Scalar>
struct Logarithm;

template <class V>
struct Logarithm<V, float> {
  static constexpr float sqrt_half = 0.707106781f;
  RNNEXT_COEFFICIENTS(float, series, 2.f / 9, 2.f / 7, 2.f / 5)
  static constexpr float two_thirds_high = 0.666748047f, two_thirds_low = -8.13802108e-5f;
};

template <class V>
struct Logarithm<V, double> {
  static constexpr double sqrt_half = 0.7071067811865476;
  RNNEXT_COEFFICIENTS(double, series, 2. / 21, 2. / 19, 2. / 17, 2. / 15, 2. / 13, 2. / 11, 2. / 9, 2. / 7, 2. / 5)
  static constexpr double two_thirds_high = 0.6666666716337204, two_thirds_low = -4.967053731282552e-09;
};

// x = 2^k (1 + f) with 1 + f between sqrt(1/2) and sqrt(2), for normal x > 0
template <class V>
struct LogArgument {
  V k, f;
  typename V::Bits exponent;  // k + bias in its place
};

template <class V>
RNNEXT_INLINE LogArgument<V> log_argument(V x) {
  using F = Format<V>;
  const auto sqrt_half = V(Logarithm<V>::sqrt_half).bits();
  const auto above = x.bits() + (V(1).bits() - sqrt_half);
  const auto exponent = (above >> F::mantissa) << F::mantissa;
  // k + bias as the last bits of a large number: the integer becomes a value by a subtraction.
  V k = V::from_bits((above >> F::mantissa) | V(F::integers).bits()) - V(F::integers + F::bias);
  return {k, V::from_bits(above - exponent + sqrt_half) - V(1), exponent};
}

// The same for any x > 0.
template <class V>
RNNEXT_INLINE LogArgument<V> log_argument_any(V x) {
  using F = Format<V>;
  auto subnormal = x < V(F::smallest);
  LogArgument<V> a = log_argument(select(subnormal, x * V(F::integers), x));
  a.k = select(subnormal, a.k - V(F::mantissa), a.k);
  return a;
}

// log(1+f) = f - f^2/2 + s (f^2/2 + s^2 series), arranged as in fdlibm (Sun 1993) so that little is rounded.
template <class V>
RNNEXT_INLINE V log_sum(V k, V f) {
  using E = Exponent<V>;
  using L = Logarithm<V>;
  V s = f / (V(2) + f);
  V z = s * s;
  V half = V(0.5f) * f * f;
  V series = fma(z, polynomial(z, L::series()), V(L::two_thirds_high + L::two_thirds_low));
  V rest = s * fma(z, series, half);
  return fma(k, V(E::ln2_high), f - (half - fma(k, V(E::ln2_low), rest)));
}

// log of what was x, given for zero, negative values, infinity and NaN, where `value` has no meaning.
template <class V>
RNNEXT_INLINE V log_limits(V x, V value) {
  value = select(x > V(0), value, select(x == V(0), -infinity<V>(), not_a_number<V>()));
  return select(x == infinity<V>(), x, value);
}

template <class V>
RNNEXT_INLINE V log(V x) {
  LogArgument<V> a = log_argument_any(x);
  return log_limits(x, log_sum(a.k, a.f));
}

template <class V>
RNNEXT_INLINE V log1p(V x) {
  using F = Format<V>;
  V u = V(1) + x;
  V part = u - V(1);
  // 1 + x = u + lost, exactly; without `lost` near zero nothing would be left of x, and from `integers` on it is naught.
  V lost = (V(1) - (u - part)) + (x - part);
  LogArgument<V> a = log_argument(u);
  V scale = V::from_bits(V(1).bits() + V(1).bits() - a.exponent);  // 2^-k
  V f = a.f + select(x < V(F::integers * 4), lost * scale, V(0));
  return copysign(log_limits(u, log_sum(a.k, f)), x);
}

}  // namespace rnnext::RNNEXT_ISA
