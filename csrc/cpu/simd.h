// Vec<T>: a vector register of values of T, on the compiler's vector extension (GCC and Clang, any processor).
// RNNEXT_VECTOR_BYTES is its size; the file in isa/ that includes this sets it.
#pragma once

#include <cstdint>
#include <cstring>
#if RNNEXT_VECTOR_BYTES == 64
#include <immintrin.h>
#endif

#define RNNEXT_INLINE inline __attribute__((always_inline))

namespace rnnext::RNNEXT_ISA {

// One register's worth of T, and of the integers of the same size. (GCC ignores a vector size that depends on a
// template parameter, hence the two specialisations.)
template <class T>
struct Register;
template <>
struct Register<float> {
  typedef float Values __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
  typedef int32_t Ints __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
};
template <>
struct Register<double> {
  typedef double Values __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
  typedef int64_t Ints __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
};

// The first n values of a register from and to memory; those beyond are zero, or left as they are.
#if RNNEXT_VECTOR_BYTES == 64
RNNEXT_INLINE auto load_some(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps((1u << n) - 1, p);
}
RNNEXT_INLINE auto load_some(const double* p, int64_t n) {
  return _mm512_maskz_loadu_pd((1u << n) - 1, p);
}
RNNEXT_INLINE void store_some(__m512 v, float* p, int64_t n) {
  _mm512_mask_storeu_ps(p, (1u << n) - 1, v);
}
RNNEXT_INLINE void store_some(__m512d v, double* p, int64_t n) {
  _mm512_mask_storeu_pd(p, (1u << n) - 1, v);
}
#else
template <class T>
RNNEXT_INLINE typename Register<T>::Values load_some(const T* p, int64_t n) {
  typename Register<T>::Values v{};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
template <class T>
RNNEXT_INLINE void store_some(typename Register<T>::Values v, T* p, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}
#endif

// Sum of the values, halves onto halves.
template <int S, class Values, class Ints>
RNNEXT_INLINE auto folded(Values v) {
  if constexpr (S == 0) {
    return v[0];
  } else {
    Values other;
#if defined(__clang__)
    for (int k = 0; k < S; ++k) other[k] = v[k + S];
    for (int k = S; k < static_cast<int>(sizeof(Values) / sizeof(v[0])); ++k) other[k] = v[k];
#else
    Ints from;
    for (int k = 0; k < static_cast<int>(sizeof(Values) / sizeof(v[0])); ++k) from[k] = k ^ S;
    other = __builtin_shuffle(v, from);
#endif
    return folded<S / 2, Values, Ints>(v + other);
  }
}

template <class T>
struct Vec {
  using Scalar = T;
  using Native = typename Register<T>::Values;
  using Mask = typename Register<T>::Ints;
  static constexpr int width = RNNEXT_VECTOR_BYTES / sizeof(T);

  Native v;

  Vec() = default;
  RNNEXT_INLINE Vec(Native native) : v(native) {}
  RNNEXT_INLINE explicit Vec(T scalar) : v(scalar - Native{}) {}

  RNNEXT_INLINE static Vec load(const T* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof(Native));
    return r;
  }
  RNNEXT_INLINE void store(T* p) const { std::memcpy(p, &v, sizeof(Native)); }

  // The first n values, 0 < n <= width; the others are zero, so that a tail runs through the same instructions.
  RNNEXT_INLINE static Vec load(const T* p, int64_t n) { return n == width ? load(p) : Vec(load_some(p, n)); }
  RNNEXT_INLINE void store(T* p, int64_t n) const { n == width ? store(p) : store_some(v, p, n); }

  RNNEXT_INLINE friend Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  RNNEXT_INLINE friend Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  RNNEXT_INLINE friend Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  RNNEXT_INLINE friend Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  RNNEXT_INLINE friend Vec operator-(Vec a) { return -a.v; }
  RNNEXT_INLINE friend Mask operator<(Vec a, Vec b) { return a.v < b.v; }
  RNNEXT_INLINE friend Mask operator<=(Vec a, Vec b) { return a.v <= b.v; }
  RNNEXT_INLINE friend Mask operator>(Vec a, Vec b) { return a.v > b.v; }
  RNNEXT_INLINE friend T sum_of(Vec a) { return folded<width / 2, Native, Mask>(a.v); }
  RNNEXT_INLINE friend Vec select(Mask m, Vec a, Vec b) { return m ? a.v : b.v; }
};

// Constants of the exponential. Adding `round` (1.5 times 2 to the number of mantissa bits) to a value leaves its
// nearest integer in the low bits; shifted into the exponent field it becomes that power of two. Arguments are cut
// where the power is 0 or infinity.
template <class V, class T = typename V::Scalar>
struct Exponent;

template <class V>
struct Exponent<V, float> {
  static constexpr float lowest = -88.0f, highest = 88.8f, tanh_saturates = 20.0f;
  static constexpr float log2e = 1.44269504f, round = 12582912.0f;
  static constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
  static constexpr int terms = 6;
  static constexpr float taylor[terms] = {1.f / 5040, 1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2};

  RNNEXT_INLINE static V power_of_two(V shifted) {
    typename V::Mask n;
    std::memcpy(&n, &shifted.v, sizeof n);
    n = (n + 127) << 23;
    std::memcpy(&shifted.v, &n, sizeof n);
    return shifted;
  }
};

template <class V>
struct Exponent<V, double> {
  static constexpr double lowest = -709.0, highest = 709.9, tanh_saturates = 40.0;
  static constexpr double log2e = 1.4426950408889634, round = 6755399441055744.0;
  static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
  static constexpr int terms = 12;
  static constexpr double taylor[terms] = {1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800,
                                           1. / 362880,     1. / 40320,     1. / 5040,     1. / 720,
                                           1. / 120,        1. / 24,        1. / 6,        1. / 2};

  RNNEXT_INLINE static V power_of_two(V shifted) {
    typename V::Mask n;
    std::memcpy(&n, &shifted.v, sizeof n);
    n = (n + 1023) << 52;
    std::memcpy(&shifted.v, &n, sizeof n);
    return shifted;
  }
};

}  // namespace rnnext::RNNEXT_ISA
