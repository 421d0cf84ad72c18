// Rounding to bfloat16, and products of bfloat16 with sums in float, by AVX-512's instructions: nearest, ties to even;
// subnormal numbers count as zero; NaN stays NaN.
#pragma once

#include "cpu/simd.h"

#include "cpu/bfloat16_weights.h"
#include "cpu/gemm_tile.h"

namespace rnnext::RNNEXT_ISA {

// Two values of bfloat16 lie where one of float would.
struct PairProduct {
  RNNEXT_INLINE static Vec<float> add(Vec<float> sum, Vec<float> a, Vec<float> b) {
    return Vec<float>(_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v));
  }
  RNNEXT_INLINE static __m256 add(__m256 sum, __m256 a, __m256 b) {
    return _mm256_dpbf16_ps(sum, (__m256bh)a, (__m256bh)b);
  }
};

inline void gemm_pairs(int64_t m, int64_t n, int64_t pairs, Rows<const float> a, Rows<const float> b, Rows<float> c,
                       bool accumulate) {
  gemm_with<PairProduct>(m, n, pairs, AsItLies<float>{a}, b, c, accumulate);
}

inline void gemm_tn_pairs(int64_t m, int64_t n, int64_t pairs, Rows<const float> a, Rows<const float> b, Rows<float> c,
                          bool accumulate) {
  gemm_with<PairProduct>(m, n, pairs, Transposed<float>{a}, b, c, accumulate);
}

// Sixteen values, as the lower halves of integers.
RNNEXT_INLINE Vec<float>::Bits rounded(const float* values, int64_t n) {
  return (Vec<float>::Bits)_mm512_maskz_cvtepu16_epi32(0xffff,
                                                       (__m256i)_mm512_cvtneps_pbh(Vec<float>::load(values, n).v));
}

inline void round_rows(int64_t rows, int64_t columns, Rows<const float> src, Rows<uint16_t> dst) {
  constexpr int64_t width = Vec<float>::width;
  for (int64_t i = 0; i < rows; ++i) {
    const float* from = src[i];
    uint16_t* to = dst[i];
    int64_t j = 0;
    for (; j + width <= columns; j += width) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + j)));
    }
    for (; j < columns; j += width) {  // once: the rest, and a zero after an odd number
      const int64_t rest = columns - j;
      _mm256_mask_storeu_epi16(to + j, (1u << (rest + rest % 2)) - 1,
                               (__m256i)_mm512_cvtneps_pbh(Vec<float>::load(from + j, rest).v));
    }
  }
}

inline void round_pair(int64_t columns, const float* first, const float* second, uint16_t* dst) {
  constexpr int64_t width = Vec<float>::width;
  for (int64_t j = 0; j < columns; j += width) {
    const int64_t n = columns - j < width ? columns - j : width;
    Vec<float>::Bits pairs{};
    if (first) pairs = rounded(first + j, n);
    if (second) pairs |= rounded(second + j, n) << 16;
    _mm512_mask_storeu_epi32(dst + 2 * j, (1u << n) - 1, (__m512i)pairs);
  }
}

inline void join_pair(int64_t columns, const uint16_t* first, const uint16_t* second, uint16_t* dst) {
  constexpr int64_t width = Vec<float>::width;
  for (int64_t j = 0; j < columns; j += width) {
    const int64_t n = columns - j < width ? columns - j : width;
    Vec<float>::Bits pairs{};
    if (first) pairs = bits_of(first + j, n) >> 16;
    if (second) pairs |= bits_of(second + j, n);
    _mm512_mask_storeu_epi32(dst + 2 * j, (1u << n) - 1, (__m512i)pairs);
  }
}

}  // namespace rnnext::RNNEXT_ISA
