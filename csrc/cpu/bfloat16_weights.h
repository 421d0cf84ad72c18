// Values kept in bfloat16, on every processor: widened to float where they are read, rounded where they are written.
#pragma once

#include "cpu/simd.h"

#include "engine/cell.h"

namespace rnnext::RNNEXT_ISA {

// Half a register.
typedef uint16_t Halves __attribute__((vector_size(RNNEXT_VECTOR_BYTES / 2)));

RNNEXT_INLINE Halves load_halves(const uint16_t* p, int64_t n) {
  Halves values{};
  if (n == Vec<float>::width) {
    std::memcpy(&values, p, sizeof(Halves));
    return values;
  }
#if RNNEXT_VECTOR_BYTES == 64
  return (Halves)_mm256_maskz_loadu_epi16((1u << n) - 1, p);
#else
  for (int64_t i = 0; i < n; ++i) values[i] = p[i];
  return values;
#endif
}

RNNEXT_INLINE void store_halves(Halves values, uint16_t* p, int64_t n) {
  if (n == Vec<float>::width) {
    std::memcpy(p, &values, sizeof(Halves));
    return;
  }
#if RNNEXT_VECTOR_BYTES == 64
  _mm256_mask_storeu_epi16(p, (1u << n) - 1, (__m256i)values);
#else
  for (int64_t i = 0; i < n; ++i) p[i] = values[i];
#endif
}

// The first n values, 0 < n <= width, as bits of float; the others are zero. (GCC widens a vector by parts.)
RNNEXT_INLINE Vec<float>::Bits bits_of(const uint16_t* p, int64_t n) {
#if RNNEXT_VECTOR_BYTES == 64
  return (Vec<float>::Bits)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)load_halves(p, n)) << 16;
#elif RNNEXT_VECTOR_BYTES == 32
  return (Vec<float>::Bits)_mm256_cvtepu16_epi32((__m128i)load_halves(p, n)) << 16;
#else
  return __builtin_convertvector(load_halves(p, n), Vec<float>::Bits) << 16;
#endif
}

// The first n values as floats, whatever they are kept in.
RNNEXT_INLINE Vec<float> widened(const uint16_t* p, int64_t n) {
  return Vec<float>::from_bits(bits_of(p, n));
}
template <class T>
RNNEXT_INLINE Vec<T> widened(const T* p, int64_t n) {
  return Vec<T>::load(p, n);
}

inline void widen(int64_t rows, int64_t columns, Rows<const uint16_t> src, Rows<float> dst) {
  constexpr int64_t width = Vec<float>::width;
  for (int64_t i = 0; i < rows; ++i) {
    int64_t j = 0;
    for (; j + width <= columns; j += width) widened(src[i] + j, width).store(dst[i] + j);
    if (j < columns) widened(src[i] + j, columns - j).store(dst[i] + j, columns - j);
  }
}

// Nearest, ties to even; NaN stays NaN.
RNNEXT_INLINE Halves rounded(Vec<float> values) {
  using Bits = Vec<float>::Bits;
  const Bits bits = values.bits();
  const Bits nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = Bits{} + 0x7fc0;
  const Bits result = (values == values) ? nearest : nan;
#if RNNEXT_VECTOR_BYTES == 64
  return (Halves)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)result);
#else
  return __builtin_convertvector(result, Halves);
#endif
}

inline void round(int64_t rows, int64_t columns, Rows<const float> src, Rows<uint16_t> dst) {
  constexpr int64_t width = Vec<float>::width;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; j += width) {
      const int64_t n = columns - j < width ? columns - j : width;
      store_halves(rounded(Vec<float>::load(src[i] + j, n)), dst[i] + j, n);
    }
  }
}

}  // namespace rnnext::RNNEXT_ISA
