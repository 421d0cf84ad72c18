// Products of matrices on one thread: tiles of C stay in registers while the depth passes.
#pragma once

#include "cpu/simd.h"

#include "cpu/bfloat16_weights.h"
#include "cpu/kernels.h"
#include "engine/cell.h"

namespace rnnext::RNNEXT_ISA {

// How a tile multiplies: the sum, and one value of A, in all lanes, times a vector of B.
template <class T>
struct PlainProduct {
  RNNEXT_INLINE static Vec<T> add(Vec<T> sum, Vec<T> a, Vec<T> b) { return fma(a, b, sum); }
  template <class Half>
  RNNEXT_INLINE static Half add(Half sum, Half a, Half b) {
    return multiply_add(a, b, sum);
  }
};

// The left-hand side A of a product, [m, k]: as it lies in memory, or as the transpose of what lies there.
template <class T>
struct AsItLies {
  Rows<const T> rows;

  RNNEXT_INLINE T at(int64_t i, int64_t l) const { return rows[i][l]; }
  AsItLies from(int64_t i) const { return {rows.from(i)}; }
};
template <class T>
struct Transposed {
  Rows<const T> rows;

  RNNEXT_INLINE T at(int64_t i, int64_t l) const { return rows[l][i]; }
  Transposed from(int64_t i) const { return {rows.from(0, i)}; }
};

// The width of a tile of one row, which reads B as fast as it can.
constexpr int kRowVectors = RNNEXT_VECTOR_BYTES == 64 ? 16 : 8;

// Rows of a tile that is so many vectors wide: as many sums as the registers hold beside the operands.
constexpr int tallest(int vectors) {
  if (vectors >= 8) return 1;
  if (RNNEXT_VECTOR_BYTES == 64) return vectors == 4 ? 6 : vectors == 3 ? 9 : 14;
  return vectors > 2 ? 2 : 6;
}

// The width of tiles for many rows.
constexpr int kVectors = RNNEXT_VECTOR_BYTES == 64 ? 4 : 2;
// Whether a load with a mask costs what one without does.
constexpr bool kMasks = RNNEXT_VECTOR_BYTES == 64;

// Half a vector in each row of a tile, or nothing.
template <bool, class Product, int R, class T>
struct HalfColumn {
  RNNEXT_INLINE void begin(int64_t, Rows<T>, bool) {}
  template <class B>
  RNNEXT_INLINE void load(const B*, int64_t) {}
  RNNEXT_INLINE void add(int, Vec<T>) {}
  RNNEXT_INLINE void end(int64_t, Rows<T>) const {}
};
#if RNNEXT_VECTOR_BYTES == 64
template <class Product, int R, class T>
struct HalfColumn<true, Product, R, T> {
  using Half = decltype(half_of(typename Vec<T>::Native{}));
  Half sum[R], row;

  RNNEXT_INLINE void begin(int64_t some, Rows<T> c, bool accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) sum[i] = accumulate ? load_half(c[i], some) : Half{};
  }
  RNNEXT_INLINE void load(const T* b, int64_t some) { row = load_half(b, some); }
  template <class B>
  RNNEXT_INLINE void load(const B* b, int64_t some) {
    row = half_of(widened(b, some).v);
  }
  RNNEXT_INLINE void add(int i, Vec<T> factor) { sum[i] = Product::add(sum[i], half_of(factor.v), row); }
  RNNEXT_INLINE void end(int64_t some, Rows<T> c) const {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) store_half(sum[i], c[i], some);
  }
};
#endif

// What the columns of a tile are: vectors, the last of which has some values, all, or is half of one.
enum class Columns { kSome, kWhole, kHalf };

// R rows by V vectors of C, the last of which has `some` values. B is of T, or kept in another type.
template <class Product, int R, int V, Columns kind, class A, class T, class B>
RNNEXT_INLINE void gemm_tile(int64_t k, int64_t some, A a, Rows<const B> b, Rows<T> c, bool accumulate) {
  using Values = Vec<T>;
  constexpr int64_t width = Values::width;
  constexpr int vectors = kind == Columns::kHalf ? V - 1 : V;
  typename Values::Native sum[R][vectors + 1], row[vectors + 1];
  HalfColumn<kind == Columns::kHalf, Product, R, T> half;
  const auto whole = [](int j) __attribute__((always_inline)) { return kind != Columns::kSome || j + 1 < V; };
  const auto load = [&](const auto* p, int j) __attribute__((always_inline)) {
    if constexpr (std::is_same_v<decltype(p), const T*>) {
      return whole(j) ? Values::load(p + j * width).v : load_some(p + j * width, some);
    } else {
      return widened(p + j * width, whole(j) ? width : some).v;
    }
  };
  half.begin(some, c.from(0, vectors * width), accumulate);
  if (accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < vectors; ++j) sum[i][j] = load(c[i], j);
    }
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < vectors; ++j) sum[i][j] = Values(T(0)).v;
    }
  }
  for (int64_t l = 0; l < k; ++l) {
#pragma GCC unroll 16
    for (int j = 0; j < vectors; ++j) row[j] = load(b[l], j);
    half.load(b[l] + vectors * width, some);
    if constexpr (V >= 8) {  // of B as it lies, whose next rows the processor does not foresee
#pragma GCC unroll 16
      for (int j = 0; j < V; j += 64 / (width * sizeof(B))) __builtin_prefetch(b[l + 8] + j * width);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const Values factor(a.at(i, l));
#pragma GCC unroll 16
      for (int j = 0; j < vectors; ++j) sum[i][j] = Product::add(Values(sum[i][j]), factor, Values(row[j])).v;
      half.add(i, factor);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < vectors; ++j) {
      if (whole(j)) {
        Values(sum[i][j]).store(c[i] + j * width);
      } else {
        store_some(sum[i][j], c[i] + j * width, some);
      }
    }
  }
  half.end(some, c.from(0, vectors * width));
}

// A tile of `rows` rows, R at most.
template <class Product, int R, int V, Columns kind, class A, class T, class B>
void gemm_tile_of(int64_t rows, int64_t k, int64_t some, A a, Rows<const B> b, Rows<T> c, bool accumulate) {
  if (rows == R) return gemm_tile<Product, R, V, kind>(k, some, a, b, c, accumulate);
  if constexpr (R > 1) gemm_tile_of<Product, R - 1, V, kind>(rows, k, some, a, b, c, accumulate);
}

template <class Product, int V, class A, class T, class B>
void gemm_columns(int64_t m, int64_t k, int64_t some, A a, Rows<const B> b, Rows<T> c, bool accumulate) {
  // What has tiles of its own beside those of any number of columns: where masks cost nothing, half a vector.
  constexpr Columns own = !kMasks ? Columns::kWhole : V <= 4 ? Columns::kHalf : Columns::kSome;
  const bool fits = kMasks ? some <= Vec<T>::width / 2 : some == Vec<T>::width;
  const int64_t tiles = (m + tallest(V) - 1) / tallest(V);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = m * t / tiles, end = m * (t + 1) / tiles, rows = end - begin;
    if (t + 1 < tiles) {  // C of the next tile comes while this one multiplies: gradients of weights leave the caches
      for (int64_t i = end; i < m * (t + 2) / tiles; ++i) {
        for (int j = 0; j < V; j += 64 / (Vec<T>::width * sizeof(T))) __builtin_prefetch(c[i] + j * Vec<T>::width);
      }
    }
    if (fits && own != Columns::kSome) {
      gemm_tile_of<Product, tallest(V), V, own>(rows, k, some, a.from(begin), b, c.from(begin), accumulate);
    } else {
      gemm_tile_of<Product, tallest(V), V, Columns::kSome>(rows, k, some, a.from(begin), b, c.from(begin), accumulate);
    }
  }
}

// One row of C adds up R rows of B at once.
template <class Product, int R, class A, class T, class B>
RNNEXT_INLINE void gemm_row_step(int64_t n, int64_t l, A a, Rows<const B> b, T* c, bool accumulate) {
  using Values = Vec<T>;
  Values factor[R + 1];
  const B* row[R + 1];
  for (int i = 0; i < R; ++i) {
    factor[i] = Values(a.at(0, l + i));
    row[i] = b[l + i];
  }
  const auto add = [&](int64_t j, int64_t some) __attribute__((always_inline)) {
    Values sum = accumulate ? Values::load(c + j, some) : Values(T(0));
    for (int i = 0; i < R; ++i) sum = Product::add(sum, factor[i], widened(row[i] + j, some));
    sum.store(c + j, some);
  };
  int64_t j = 0;
  for (; j + Values::width <= n; j += Values::width) add(j, Values::width);
  if (j < n) add(j, n - j);
}

// One row of C: as much of it as stays in the nearest cache passes over the rows of B as they lie in memory, which the
// processor foresees, where tiles would jump from row to row.
template <class Product, class A, class T, class B>
void gemm_row(int64_t n, int64_t k, A a, Rows<const B> b, T* c, bool accumulate) {
  constexpr int64_t most = 16384 / sizeof(T);
  for (int64_t j = 0; j < n; j += most) {
    const int64_t count = n - j < most ? n - j : most;
    if (k == 0) gemm_row_step<Product, 0>(count, 0, a, b, c + j, accumulate);
    int64_t l = 0;
    for (; l + 4 <= k; l += 4) gemm_row_step<Product, 4>(count, l, a, b.from(0, j), c + j, accumulate || l > 0);
    for (; l < k; ++l) gemm_row_step<Product, 1>(count, l, a, b.from(0, j), c + j, accumulate || l > 0);
  }
}

// C [m, n] (+)= A [m, k] B [k, n]. Each sum has the order of the depth, whatever the tiles.
template <class Product, class A, class T, class B>
void gemm_with(int64_t m, int64_t n, int64_t k, A a, Rows<const B> b, Rows<T> c, bool accumulate) {
  constexpr int64_t width = Vec<T>::width;
  if ((m == 1 || k <= kShallow) && n > kRowVectors * width) {
    for (int64_t i = 0; i < m; ++i) gemm_row<Product>(n, k, a.from(i), b, c[i], accumulate);
    return;
  }
  // B comes from a cache or from memory: where it takes more than one, a pass over it is worth at least so many rows.
  constexpr int64_t worth_passing = kVectors == 4 ? 4 : tallest(4) + 1;
  const int64_t passes = (m + tallest(4) - 1) / tallest(4);
  const int64_t vectors = passes == 1 || m / passes >= worth_passing ? 4 : 2;
  for (int64_t j = 0, wide; j < n; j += wide * width) {
    const int64_t left = (n - j + width - 1) / width;
    wide = m == 1 && left >= kRowVectors  ? kRowVectors
           : left == 3 && m <= tallest(3) ? 3
           : left < vectors               ? left
                                          : vectors;
    const int64_t some = n - j < wide * width ? n - j - (wide - 1) * width : width;
    const Rows<const B> columns = b.from(0, j);
    const Rows<T> into = c.from(0, j);
    if (wide == kRowVectors) gemm_columns<Product, kRowVectors>(m, k, some, a, columns, into, accumulate);
    if (wide == 8 && kRowVectors > 8) gemm_columns<Product, 8>(m, k, some, a, columns, into, accumulate);
    if (wide == 4) gemm_columns<Product, 4>(m, k, some, a, columns, into, accumulate);
    if (wide == 3) gemm_columns<Product, 3>(m, k, some, a, columns, into, accumulate);
    if (wide == 2) gemm_columns<Product, 2>(m, k, some, a, columns, into, accumulate);
    if (wide == 1) gemm_columns<Product, 1>(m, k, some, a, columns, into, accumulate);
  }
}

template <class T, class B>
void gemm(int64_t m, int64_t n, int64_t k, Rows<const T> a, Rows<const B> b, Rows<T> c, bool accumulate) {
  gemm_with<PlainProduct<T>>(m, n, k, AsItLies<T>{a}, b, c, accumulate);
}

template <class T>
void gemm_tn(int64_t m, int64_t n, int64_t k, Rows<const T> a, Rows<const T> b, Rows<T> c, bool accumulate) {
  gemm_with<PlainProduct<T>>(m, n, k, Transposed<T>{a}, b, c, accumulate);
}

}  // namespace rnnext::RNNEXT_ISA
