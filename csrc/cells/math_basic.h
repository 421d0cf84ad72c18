// What one or two instructions do, and rounding to integers.
#pragma once

namespace rnnext::RNNEXT_ISA {

// Properties of the number format.
template <class V, class T = typename V::Scalar>
struct Format;

template <class V>
struct Format<V, float> {
  static constexpr int bits = 32, mantissa = 23, bias = 127;
  static constexpr float integers = 8388608.0f;  // 2^mantissa: from here on, every value is an integer
  static constexpr float smallest = 1.17549435e-38f;
  static constexpr unsigned lower_half = (1u << 12) - 1;  // of the mantissa's bits
};

template <class V>
struct Format<V, double> {
  static constexpr int bits = 64, mantissa = 52, bias = 1023;
  static constexpr double integers = 4503599627370496.0;
  static constexpr double smallest = 2.2250738585072014e-308;
  static constexpr unsigned long long lower_half = (1ull << 27) - 1;
};

template <class V>
RNNEXT_INLINE V infinity() {
  return V(static_cast<typename V::Scalar>(__builtin_inf()));
}

template <class V>
RNNEXT_INLINE V not_a_number() {
  return V(static_cast<typename V::Scalar>(__builtin_nan("")));
}

// c[0] x^(N-1) + ... + c[N-1], of a table of N coefficients.
template <class V, class Table>
RNNEXT_INLINE V polynomial(V x, const Table& c) {
  constexpr int count = sizeof(Table) / sizeof(typename V::Scalar);
  V sum = V(c[0]);
  for (int k = 1; k < count; ++k) sum = fma(sum, x, V(c[k]));
  return sum;
}

template <class V>
RNNEXT_INLINE V abs(V x) {
  return V::from_bits(x.bits() & ~V(-0.0f).bits());
}

// |x| with the sign of s.
template <class V>
RNNEXT_INLINE V copysign(V x, V s) {
  const auto sign = V(-0.0f).bits();
  return V::from_bits((x.bits() & ~sign) | (s.bits() & sign));
}

// 1, 0 or -1; as torch's, 0 for NaN.
template <class V>
RNNEXT_INLINE V sign(V x) {
  return select(x > V(0), V(1), select(x < V(0), V(-1), V(0)));
}

template <class V>
RNNEXT_INLINE V relu(V x) {
  return select(x < V(0), V(0), x);
}

// As torch's, NaN where either is.
template <class V>
RNNEXT_INLINE V minimum(V a, V b) {
  return select(mask_or(a < b, a != a), a, b);
}

template <class V>
RNNEXT_INLINE V maximum(V a, V b) {
  return select(mask_or(a > b, a != a), a, b);
}

template <class V>
RNNEXT_INLINE V rsqrt(V x) {
  return V(1) / sqrt(x);
}

// The four roundings keep the sign of a result that is zero. This one is to the nearest integer, ties to the even one:
// what the addition of Format::integers does.
template <class V>
RNNEXT_INLINE V round(V x) {
  const V integers(Format<V>::integers);
  V size = abs(x);
  return select(size < integers, copysign((size + integers) - integers, x), x);
}

template <class V>
RNNEXT_INLINE V floor(V x) {
  V r = round(x);
  return select(r > x, r - V(1), r);
}

template <class V>
RNNEXT_INLINE V ceil(V x) {
  V r = round(x);
  return copysign(select(r < x, r + V(1), r), x);
}

template <class V>
RNNEXT_INLINE V trunc(V x) {
  V size = abs(x);
  V r = round(size);
  return copysign(select(r > size, r - V(1), r), x);
}

}  // namespace rnnext::RNNEXT_ISA
