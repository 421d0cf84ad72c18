// Powers. The logarithm is needed with half as many digits again, for an error of it is multiplied by the exponent: it
// is the sum of two values. Products that must be exact are of values with half of the digits, as in fdlibm (Sun 1993):
// that holds with and without instructions that round once.
#pragma once

#include "cells/math_exp.h"
#include "cells/math_log.h"

namespace rnnext::RNNEXT_ISA {

// x with the lower half of its digits cut off.
template <class V>
RNNEXT_INLINE V upper_half(V x) {
  return V::from_bits(x.bits() & ~(typename V::Bits{} + Format<V>::lower_half));
}

template <class V>
struct Twofold {
  V high, low;  // high: half of the digits
};

// log x for x > 0: log(1+f) = 2/3 s (3 + s^2 + s^4 (3/5 + 3/7 s^2 + ...)) with s = f / (2+f).
template <class V>
RNNEXT_INLINE Twofold<V> log_twofold(V x) {
  using E = Exponent<V>;
  using L = Logarithm<V>;
  LogArgument<V> a = log_argument_any(x);
  V divisor = V(2) + a.f;
  V inverse = V(1) / divisor;
  V s = a.f * inverse;
  V s_high = upper_half(s);
  V divisor_high = upper_half(divisor);
  V divisor_low = a.f - (divisor_high - V(2));
  V s_low = inverse * ((a.f - s_high * divisor_high) - s_high * divisor_low);

  V z = s * s;
  V square = s_high * s_high;
  V rest = V(1.5f) * (z * z) * polynomial(z, L::series()) + s_low * (s_high + s);
  V t_high = upper_half(V(3) + square + rest);
  V t_low = rest - ((t_high - V(3)) - square);

  V product = s_high * t_high;
  V product_low = s_low * t_high + t_low * s;
  V p_high = upper_half(product + product_low);
  V p_low = product_low - (p_high - product);

  V high = p_high * V(L::two_thirds_high);
  V low = p_high * V(L::two_thirds_low) + p_low * V(L::two_thirds_high + L::two_thirds_low);
  V whole = a.k * V(E::ln2_high);
  V sum = whole + high;
  low = ((whole - sum) + high) + (a.k * V(E::ln2_low) + low);
  V rounded = upper_half(sum + low);
  return {rounded, low - (rounded - sum)};
}

// |x|^y
template <class V>
RNNEXT_INLINE V pow_of_size(V x, V y) {
  // Beyond these, every power of a number other than one is zero or infinite.
  const V most(Format<V>::integers * Format<V>::integers);
  y = select(y > most, most, select(y < -most, -most, y));
  Twofold<V> log_x = log_twofold(x);
  V y_high = upper_half(y);
  V product = y_high * log_x.high;
  V product_low = (y - y_high) * log_x.high + y * log_x.low;
  V exponent = product + product_low;
  V low = product_low - (exponent - product);
  // It is large only where the power is zero or infinite.
  low = select(abs(low) < V(0.001f), low, V(0));
  return exp_any(exponent, low, V(0));
}

// As torch.pow: 1 for y = 0 and for x = 1, NaN for a negative x and a y that is no integer.
template <class V>
RNNEXT_INLINE V pow(V x, V y) {
  const V inf = infinity<V>();
  V size = abs(x);
  V value = pow_of_size(size, y);

  V growth = select(size > V(1), y, -y);
  V limit = select(growth > V(0), inf, select(growth < V(0), V(0), growth));
  value = select(mask_or(size == V(0), size == inf), limit, value);

  auto integer = trunc(y) == y;
  auto odd = mask_and(integer, trunc(V(0.5f) * y) != V(0.5f) * y);
  auto undefined = mask_and(mask_and(x < V(0), mask_not(integer)), size < inf);
  value = select(undefined, not_a_number<V>(), value);
  value = select(odd, copysign(value, x), value);

  value = select(x == x, value, x);
  return select(mask_or(y == V(0), x == V(1)), V(1), value);
}

}  // namespace rnnext::RNNEXT_ISA
