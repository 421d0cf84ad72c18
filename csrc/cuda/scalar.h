// Vec<T>: one value of T, which a thread of a GPU computes with; what cells/math.h and engine/units.h ask for.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device.h"

#define RNNEXT_ISA gpu
#define RNNEXT_INLINE __device__ __forceinline__
// Device code can't take the address of a constant that is a member, but of a value that a function gives.
#define RNNEXT_COEFFICIENTS(T, name, ...)                               \
  static constexpr auto name() {                                        \
    return rnnext::gpu::Table{std::type_identity_t<T>(0), __VA_ARGS__}; \
  }
#define RNNEXT_CONSTANT __device__

namespace rnnext::gpu {

template <class T, int N>
struct Table {
  T values[N];

  template <class... Values>
  constexpr Table(T, Values... given) : values{given...} {}
  constexpr T operator[](int i) const { return values[i]; }
  constexpr const T* begin() const { return values; }
  constexpr const T* end() const { return values + N; }
};
template <class T, class... Values>
Table(T, Values...) -> Table<T, sizeof...(Values)>;

RNNEXT_INLINE bool mask_and(bool a, bool b) {
  return a && b;
}
RNNEXT_INLINE bool mask_or(bool a, bool b) {
  return a || b;
}
RNNEXT_INLINE bool mask_xor(bool a, bool b) {
  return a != b;
}
RNNEXT_INLINE bool mask_not(bool a) {
  return !a;
}

RNNEXT_INLINE float multiply_add(float a, float b, float c) {
  return ::fmaf(a, b, c);
}
RNNEXT_INLINE double multiply_add(double a, double b, double c) {
  return ::fma(a, b, c);
}
RNNEXT_INLINE float square_root(float x) {
  return ::sqrtf(x);
}
RNNEXT_INLINE double square_root(double x) {
  return ::sqrt(x);
}

template <class T>
struct Vec {
  using Scalar = T;
  using Mask = bool;
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  static constexpr int width = 1;

  T v;

  Vec() = default;
  RNNEXT_INLINE explicit Vec(T scalar) : v(scalar) {}

  RNNEXT_INLINE static Vec lanes() { return Vec(T(0)); }

  RNNEXT_INLINE Bits bits() const { return __builtin_bit_cast(Bits, v); }
  RNNEXT_INLINE static Vec from_bits(Bits b) { return Vec(__builtin_bit_cast(T, b)); }

  RNNEXT_INLINE static Vec load(const T* p, int64_t = 1) { return Vec(*p); }
  RNNEXT_INLINE void store(T* p, int64_t = 1) const { *p = v; }

  RNNEXT_INLINE friend Vec operator+(Vec a, Vec b) { return Vec(a.v + b.v); }
  RNNEXT_INLINE friend Vec operator-(Vec a, Vec b) { return Vec(a.v - b.v); }
  RNNEXT_INLINE friend Vec operator*(Vec a, Vec b) { return Vec(a.v * b.v); }
  RNNEXT_INLINE friend Vec operator/(Vec a, Vec b) { return Vec(a.v / b.v); }
  RNNEXT_INLINE friend Vec operator-(Vec a) { return Vec(-a.v); }
  RNNEXT_INLINE friend bool operator<(Vec a, Vec b) { return a.v < b.v; }
  RNNEXT_INLINE friend bool operator<=(Vec a, Vec b) { return a.v <= b.v; }
  RNNEXT_INLINE friend bool operator>(Vec a, Vec b) { return a.v > b.v; }
  RNNEXT_INLINE friend bool operator>=(Vec a, Vec b) { return a.v >= b.v; }
  RNNEXT_INLINE friend bool operator==(Vec a, Vec b) { return a.v == b.v; }
  RNNEXT_INLINE friend bool operator!=(Vec a, Vec b) { return a.v != b.v; }
  RNNEXT_INLINE friend Vec fma(Vec a, Vec b, Vec c) { return Vec(multiply_add(a.v, b.v, c.v)); }
  RNNEXT_INLINE friend Vec sqrt(Vec a) { return Vec(square_root(a.v)); }
  RNNEXT_INLINE friend T sum_of(Vec a) { return a.v; }
  RNNEXT_INLINE friend Vec select(bool m, Vec a, Vec b) { return m ? a : b; }
};

}  // namespace rnnext::gpu
