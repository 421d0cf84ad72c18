// Vec<T>: a vector register of values of T, on the compiler's vector extension (GCC and Clang, any processor).
// RNNEXT_VECTOR_BYTES is its size; the file in isa/ that includes this sets it.
#pragma once

#include <cstdint>
#include <cstring>
#if RNNEXT_VECTOR_BYTES >= 32
#include <immintrin.h>
#endif

#define RNNEXT_INLINE inline __attribute__((always_inline))
// A member function that gives a table of constants.
#define RNNEXT_COEFFICIENTS(T, name, ...)             \
  static constexpr T name##_values[] = {__VA_ARGS__}; \
  static constexpr const auto& name() {               \
    return name##_values;                             \
  }
// Before a variable template of constants.
#define RNNEXT_CONSTANT

namespace rnnext::RNNEXT_ISA {

// One register's worth of T, of the results of comparisons (all ones or zero) and of the values' bits. (GCC ignores a
// vector size that depends on a template parameter, hence the two specialisations.)
template <class T>
struct Register;
template <>
struct Register<float> {
  typedef float Values __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
  typedef float InMemory __attribute__((vector_size(RNNEXT_VECTOR_BYTES), aligned(sizeof(float))));
  typedef int32_t Mask __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
};
template <>
struct Register<double> {
  typedef double Values __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
  typedef double InMemory __attribute__((vector_size(RNNEXT_VECTOR_BYTES), aligned(sizeof(double))));
  typedef int64_t Mask __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
  typedef uint64_t Bits __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));
};

// a * b + c; with one rounding where the set has it. Elsewhere products and sums are rounded one by one
// (-ffp-contract=off), so that a value does not depend on what else is done with it: inference has the bits of training.
#if RNNEXT_VECTOR_BYTES == 64
RNNEXT_INLINE auto multiply_add(__m512 a, __m512 b, __m512 c) {
  return _mm512_fmadd_ps(a, b, c);
}
RNNEXT_INLINE auto multiply_add(__m512d a, __m512d b, __m512d c) {
  return _mm512_fmadd_pd(a, b, c);
}
#elif RNNEXT_VECTOR_BYTES == 32
RNNEXT_INLINE auto multiply_add(__m256 a, __m256 b, __m256 c) {
  return _mm256_fmadd_ps(a, b, c);
}
RNNEXT_INLINE auto multiply_add(__m256d a, __m256d b, __m256d c) {
  return _mm256_fmadd_pd(a, b, c);
}
#else
template <class Values>
RNNEXT_INLINE Values multiply_add(Values a, Values b, Values c) {
  return a * b + c;
}
#endif

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

#if RNNEXT_VECTOR_BYTES == 64
// Half a register, for what takes no more: a processor may do two such operations in the time of a whole one.
RNNEXT_INLINE __m256 half_of(__m512 v) {
  return *reinterpret_cast<__m256*>(&v);
}
RNNEXT_INLINE __m256d half_of(__m512d v) {
  return *reinterpret_cast<__m256d*>(&v);
}
RNNEXT_INLINE __m256 load_half(const float* p, int64_t n) {
  return _mm256_maskz_loadu_ps((1u << n) - 1, p);
}
RNNEXT_INLINE __m256d load_half(const double* p, int64_t n) {
  return _mm256_maskz_loadu_pd((1u << n) - 1, p);
}
RNNEXT_INLINE void store_half(__m256 v, float* p, int64_t n) {
  _mm256_mask_storeu_ps(p, (1u << n) - 1, v);
}
RNNEXT_INLINE void store_half(__m256d v, double* p, int64_t n) {
  _mm256_mask_storeu_pd(p, (1u << n) - 1, v);
}
RNNEXT_INLINE __m256 multiply_add(__m256 a, __m256 b, __m256 c) {
  return _mm256_fmadd_ps(a, b, c);
}
RNNEXT_INLINE __m256d multiply_add(__m256d a, __m256d b, __m256d c) {
  return _mm256_fmadd_pd(a, b, c);
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

RNNEXT_INLINE float square_root(float x) {
  return __builtin_sqrtf(x);
}
RNNEXT_INLINE double square_root(double x) {
  return __builtin_sqrt(x);
}

// Logic of the results of comparisons, Vec<T>::Mask.
template <class Mask>
RNNEXT_INLINE Mask mask_and(Mask a, Mask b) {
  return a & b;
}
template <class Mask>
RNNEXT_INLINE Mask mask_or(Mask a, Mask b) {
  return a | b;
}
template <class Mask>
RNNEXT_INLINE Mask mask_xor(Mask a, Mask b) {
  return a ^ b;
}
template <class Mask>
RNNEXT_INLINE Mask mask_not(Mask a) {
  return ~a;
}

template <class T>
struct Vec {
  using Scalar = T;
  using Native = typename Register<T>::Values;
  using Mask = typename Register<T>::Mask;
  using Bits = typename Register<T>::Bits;
  static constexpr int width = RNNEXT_VECTOR_BYTES / sizeof(T);

  Native v;

  Vec() = default;
  RNNEXT_INLINE Vec(Native native) : v(native) {}
  RNNEXT_INLINE explicit Vec(T scalar) : v(scalar - Native{}) {}

  // 0, 1, 2, ...
  RNNEXT_INLINE static Vec lanes() {
    Vec r;
    for (int k = 0; k < width; ++k) r.v[k] = static_cast<T>(k);
    return r;
  }

  // The values' binary form, unsigned integers of the same size.
  RNNEXT_INLINE Bits bits() const { return reinterpret_cast<Bits>(v); }
  RNNEXT_INLINE static Vec from_bits(Bits b) { return reinterpret_cast<Native>(b); }

  RNNEXT_INLINE static Vec load(const T* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof(Native));
    return r;
  }
  // A store of Ts: after a memcpy the compiler would read every pointer and size that lies in memory again.
  RNNEXT_INLINE void store(T* p) const { *reinterpret_cast<typename Register<T>::InMemory*>(p) = v; }

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
  RNNEXT_INLINE friend Mask operator>=(Vec a, Vec b) { return a.v >= b.v; }
  RNNEXT_INLINE friend Mask operator==(Vec a, Vec b) { return a.v == b.v; }
  RNNEXT_INLINE friend Mask operator!=(Vec a, Vec b) { return a.v != b.v; }
  // a * b + c; rounded once where the processor can: the compiler contracts what stands in one expression.
  RNNEXT_INLINE friend Vec fma(Vec a, Vec b, Vec c) { return Native(multiply_add(a.v, b.v, c.v)); }
  RNNEXT_INLINE friend Vec sqrt(Vec a) {
    for (int k = 0; k < width; ++k) a.v[k] = square_root(a.v[k]);  // vectorised to one instruction
    return a;
  }
  RNNEXT_INLINE friend T sum_of(Vec a) { return folded<width / 2, Native, Mask>(a.v); }
  RNNEXT_INLINE friend Vec select(Mask m, Vec a, Vec b) { return m ? a.v : b.v; }
};

}  // namespace rnnext::RNNEXT_ISA
