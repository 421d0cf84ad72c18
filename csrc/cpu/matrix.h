// Transposes, sums, and products with few rows, on one thread.
#pragma once

#include "cpu/simd.h"

#include "cells/math.h"
#include "cpu/bfloat16_weights.h"
#include "engine/cell.h"

namespace rnnext::RNNEXT_ISA {

// One level of a transpose in registers: exchanges the off-diagonal blocks of S x S lanes between rows a and b = a + S.
template <int S, class V>
RNNEXT_INLINE void exchange(V& a, V& b) {
  V low = a, high = b;
#if defined(__clang__)
  for (int k = 0; k < V::width; ++k) {
    low.v[k] = k & S ? b.v[k - S] : a.v[k];
    high.v[k] = k & S ? b.v[k] : a.v[k + S];
  }
#else
  typename V::Mask from_low, from_high;
  for (int k = 0; k < V::width; ++k) {
    from_low[k] = k & S ? V::width + k - S : k;
    from_high[k] = k & S ? V::width + k : k + S;
  }
  low.v = __builtin_shuffle(a.v, b.v, from_low);
  high.v = __builtin_shuffle(a.v, b.v, from_high);
#endif
  a = low;
  b = high;
}

// The sum of each of P vectors, in lane i * width / P that of vector i; halves onto halves, as sum_of. A level adds up two
// vectors at once, where there are two.
template <int P, int S, class V>
RNNEXT_INLINE V sums_of(V* v) {
  if constexpr (S == 0) {
    return v[0];
  } else {
    constexpr int half = P / 2;
    for (int i = 0; i < half; ++i) {
      exchange<S>(v[i], v[i + half]);
      v[i] = v[i] + v[i + half];
    }
    if constexpr (P == 1) {
      V other = v[0];
      exchange<S>(v[0], other);
      v[0] = v[0] + other;
    }
    return sums_of<(P > 1 ? half : 1), S / 2>(v);
  }
}

// M by 4 dot products at a time, so that their loads overlap and serve several of them. `next`: to the rows that come after
// these, which the processor does not foresee.
template <int M, class T, class W>
RNNEXT_INLINE void dot_tile(int64_t count, int64_t k, Rows<const T> a, const W* const* rows, int64_t next, Rows<T> c,
                            bool accumulate) {
  using Values = Vec<T>;
  Values sums[M * 4];
  for (int i = 0; i < M * 4; ++i) sums[i] = Values(T(0));
  const auto add = [&](int64_t l, int64_t some) __attribute__((always_inline)) {
    Values w[4];
    for (int q = 0; q < 4; ++q) w[q] = widened(rows[q] + l, some);
    if (M == 1) {
      for (int q = 0; q < 4; ++q) __builtin_prefetch(rows[q] + l + next);
    }
    for (int i = 0; i < M; ++i) {
      const Values x = Values::load(a[i] + l, some);
      for (int q = 0; q < 4; ++q) sums[i * 4 + q] = fma(x, w[q], sums[i * 4 + q]);
    }
  };
  const int64_t whole = k / Values::width * Values::width;
  for (int64_t l = 0; l < whole; l += Values::width) add(l, Values::width);
  if (whole < k) add(whole, k - whole);
  constexpr int group = M * 4 < Values::width ? M * 4 : Values::width, apart = Values::width / group;
  T lanes[M * 4 * apart];
  for (int first = 0; first < M * 4; first += group) {
    sums_of<group, Values::width / 2>(sums + first).store(lanes + first * apart);
  }
  for (int i = 0; i < M; ++i) {
    for (int64_t q = 0; q < count; ++q) c[i][q] = (accumulate ? c[i][q] : T(0)) + lanes[(i * 4 + q) * apart];
  }
}

// W is of T, or kept in another type.
template <class T, class W>
void gemm_nt(int64_t m, int64_t n, int64_t k, Rows<const T> a, Rows<const W> w, Rows<T> c, bool accumulate) {
  constexpr int tall = RNNEXT_VECTOR_BYTES == 64 ? 4 : 2;
  for (int64_t j = 0; j < n; j += 4) {
    const int64_t count = n - j < 4 ? n - j : 4;
    const W* rows[4];
    for (int q = 0; q < 4; ++q) rows[q] = w[j + (q < count ? q : 0)];
    int64_t i = 0;
    for (; i + tall <= m; i += tall) dot_tile<tall>(count, k, a.from(i), rows, 4 * w.stride, c.from(i, j), accumulate);
    for (; i < m; ++i) dot_tile<1>(count, k, a.from(i), rows, 4 * w.stride, c.from(i, j), accumulate);
  }
}

template <int S, class V>
RNNEXT_INLINE void transpose_square(V* rows) {
  if constexpr (S > 0) {
    for (int i = 0; i < V::width; ++i) {
      if (!(i & S)) exchange<S>(rows[i], rows[i + S]);
    }
    transpose_square<S / 2>(rows);
  }
}

// Some rows at a time, from their begin to their end, as the processor foresees it.
template <class T>
void transpose(int64_t rows, int64_t columns, Rows<const T> src, Rows<T> dst) {
  using V = Vec<T>;
  constexpr int64_t side = V::width;
  for (int64_t r = 0; r < rows; r += side) {
    const int64_t height = rows - r < side ? rows - r : side;
    for (int64_t c = 0; c < columns; c += side) {
      const int64_t width = columns - c < side ? columns - c : side;
      V block[side];
      for (int64_t i = 0; i < side; ++i) block[i] = i < height ? V::load(src[r + i] + c, width) : V(T(0));
      transpose_square<side / 2>(block);
      for (int64_t j = 0; j < width; ++j) block[j].store(dst[c + j] + r, height);
    }
  }
}

// V vectors of columns, the last of which has `some` values: by rows of an even and of an odd number, so that sums of many
// rows lose less, and have less to wait for.
template <int V, class T>
RNNEXT_INLINE void sum_columns(int64_t rows, int64_t some, Rows<const T> src, T* sums, bool accumulate) {
  using Values = Vec<T>;
  const auto count = [&](int j) __attribute__((always_inline)) { return j + 1 < V ? Values::width : some; };
  Values even[V], odd[V];
  for (int j = 0; j < V; ++j) {
    even[j] = accumulate ? Values::load(sums + j * Values::width, count(j)) : Values(T(0));
    odd[j] = Values(T(0));
  }
  for (int64_t i = 0; i + 1 < rows; i += 2) {
    for (int j = 0; j < V; ++j) even[j] = even[j] + Values::load(src[i] + j * Values::width, count(j));
    for (int j = 0; j < V; ++j) odd[j] = odd[j] + Values::load(src[i + 1] + j * Values::width, count(j));
  }
  for (int j = 0; j < V; ++j) {
    if (rows % 2) even[j] = even[j] + Values::load(src[rows - 1] + j * Values::width, count(j));
    (even[j] + odd[j]).store(sums + j * Values::width, count(j));
  }
}

template <class T>
void column_sums(int64_t rows, int64_t columns, Rows<const T> src, T* sums, bool accumulate) {
  constexpr int64_t width = Vec<T>::width;
  int64_t j = 0;
  for (; j + 4 * width <= columns; j += 4 * width) sum_columns<4>(rows, width, src.from(0, j), sums + j, accumulate);
  for (; j < columns; j += width) {
    sum_columns<1>(rows, columns - j < width ? columns - j : width, src.from(0, j), sums + j, accumulate);
  }
}

}  // namespace rnnext::RNNEXT_ISA
