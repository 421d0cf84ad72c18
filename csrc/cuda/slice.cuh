// What a block of a persistent scan is: a slice of units and a group of sequences; how it multiplies its weights, and how it
// exchanges values with the other slices.
#pragma once

#include "cuda/scalar.h"

#include "cuda/persistent.h"

namespace rnnext::gpu {

// Tiles of products of each kind of operand; see multiply_tf32 in device.h.
struct BFloat16Operand {
  static constexpr int words = 2;
  using Element = uint16_t;
  RNNEXT_INLINE static Element round(float x) { return bfloat16_bits(x); }
  RNNEXT_INLINE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool) {
    multiply_bfloat16(d, a, b);
  }
};

struct HalfOperand {
  static constexpr int words = 2;
  using Element = uint16_t;
  RNNEXT_INLINE static Element round(float x) { return half_bits(x); }
  RNNEXT_INLINE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool) {
    multiply_half(d, a, b);
  }
};

// Values stay float32. Split: x = high + low, both of the tensor cores' format; low times low has no weight. An infinity or
// NaN is in the product of the high parts alone: times a low part that is zero it would give NaN.
struct FloatOperand {
  static constexpr int words = 1;
  using Element = uint32_t;
  RNNEXT_INLINE static Element round(float x) { return Vec<float>(x).bits(); }

  template <int N>
  struct Split {
    uint32_t high[N], low[N], finite[N];  // the last: high, or 0

    RNNEXT_INLINE explicit Split(const uint32_t (&x)[N]) {
      for (int i = 0; i < N; ++i) {
        const float value = Vec<float>::from_bits(x[i]).v;
        high[i] = tf32_bits(value);
        const float rest = value - Vec<float>::from_bits(high[i]).v;
        const bool is_finite = rest == rest;
        low[i] = is_finite ? tf32_bits(rest) : 0;
        finite[i] = is_finite ? high[i] : 0;
      }
    }
  };

  RNNEXT_INLINE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool exact) {
    const Split<4> x(a);
    const Split<2> y(b);
    if (exact) {
      multiply_tf32(d, x.low, y.finite);
      multiply_tf32(d, x.finite, y.low);
    }
    multiply_tf32(d, x.high, y.high);
  }
};

// What a block is: its slice of units, its group of sequences, its memory.
template <class O>
struct Slice {
  using Element = typename O::Element;

  const cuda::PersistentScan& p;
  const Tiling& tiling;
  const int unit, units;  // the first one, and how many
  const int64_t first;    // sequence
  const int sequences;
  uint32_t* const weights;   // [rows][depth][32 lanes][4]
  float* const sums;         // [warps][sequences][sums_stride]
  float* const carry;        // [states][sequences][units of a whole slice]
  uint32_t* const exchange;  // [2][exchange_words]
  unsigned* const flags;     // [slices]

  RNNEXT_INLINE Slice(const cuda::PersistentScan& scan)
      : p(scan),
        tiling(scan.tiling),
        unit(blockIdx.x * tiling.units),
        units(min(tiling.units, static_cast<int>(scan.H) - unit)),
        first(scan.begin + int64_t{blockIdx.y} * tiling.sequences()),
        sequences(
            static_cast<int>(max(int64_t{0}, min(int64_t{tiling.sequences()}, scan.begin + scan.sequences - first)))),
        weights(reinterpret_cast<uint32_t*>(shared_memory())),
        sums(reinterpret_cast<float*>(weights + tiling.weight_words())),
        carry(sums + tiling.sums_words()),
        exchange(scan.exchange + blockIdx.y * 2 * tiling.exchange_words()),
        flags(scan.flags + blockIdx.y * tiling.slices) {}

  RNNEXT_INLINE static int min(int a, int b) { return a < b ? a : b; }
  RNNEXT_INLINE static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
  RNNEXT_INLINE static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

  RNNEXT_INLINE int64_t first_row(int64_t t) const { return p.offsets ? p.offsets[t] : t * p.N; }
  // Of this group's sequences, how many are alive at step t.
  RNNEXT_INLINE int alive(int64_t t) const {
    const int64_t rows = p.offsets ? p.offsets[t + 1] - p.offsets[t] : p.N;
    return static_cast<int>(max(0, min(int64_t{sequences}, rows - first)));
  }

  // A slice's rows of a state, which Units finds by the numbers of the whole.
  RNNEXT_INLINE Rows<float> state(int k) const {
    return {carry + k * tiling.sequences() * tiling.units - unit, tiling.units};
  }

  // value_of(row, k): of the weights.
  template <class ValueOf>
  RNNEXT_INLINE void load_weights(int rows, int depth, ValueOf value_of) const {
    const int words = static_cast<int>(tiling.weight_words());
    for (int i = threadIdx.x; i < words; i += kPersistentThreads) {
      const int r = i % 4, lane = i / 4 % 32, depth_tile = i / 128 % tiling.depth, row_tile = i / 128 / tiling.depth;
      uint32_t word = 0;
      for (int v = 0; v < O::words; ++v) {
        const WeightPlace place = weight_place(O::words, row_tile, depth_tile, lane, r, v);
        const float value = place.row < rows && place.k < depth ? value_of(place.row, place.k) : 0.0f;
        word |= static_cast<uint32_t>(O::round(value)) << (32 / O::words * v % 32);
      }
      weights[i] = word;
    }
  }

  // A unit of a sequence of this slice. Each thread has always the same ones, so that what is of one place needs no barrier:
  //   for (Place at = first_place(); at.i < places(alive); at = after(at)) ...
  struct Place {
    int i, n;
    int64_t unit;
  };
  RNNEXT_INLINE Place place(int i) const { return {i, i / units, unit + i % units}; }
  RNNEXT_INLINE Place first_place() const { return place(threadIdx.x); }
  RNNEXT_INLINE Place after(Place at) const { return place(at.i + kPersistentThreads); }
  RNNEXT_INLINE int places(int count) const { return count * units; }

  RNNEXT_INLINE void publish(int buffer, int64_t k, int n, float value) const {
    Element* const values = reinterpret_cast<Element*>(exchange + buffer * tiling.exchange_words());
    values[exchange_place(O::words, tiling.columns, static_cast<int>(k), n)] = O::round(value);
  }

  // Tells the others that `count` times this slice has published.
  RNNEXT_INLINE void post(unsigned count) const {
    __syncthreads();
    if (threadIdx.x == 0) store_release(flags + blockIdx.x, count);
  }

  // Waits until all have.
  RNNEXT_INLINE void await(unsigned count) const {
    for (int i = threadIdx.x; i < tiling.slices; i += kPersistentThreads) {
      while (load_acquire(flags + i) < count) pause();
    }
    __syncthreads();
  }

  // sums = weights times what is in a buffer, a part from each warp.
  RNNEXT_INLINE void multiply(int buffer) const {
    const uint2* const operand = reinterpret_cast<const uint2*>(exchange + buffer * tiling.exchange_words());
    for (int row_tile = 0; row_tile < tiling.rows; row_tile += 2) {
      const bool two = row_tile + 1 < tiling.rows;
      if (tiling.columns <= 3) {
        two ? multiply_tiles<2, 3>(operand, row_tile) : multiply_tiles<1, 3>(operand, row_tile);
      } else {
        two ? multiply_tiles<2, 8>(operand, row_tile) : multiply_tiles<1, 8>(operand, row_tile);
      }
    }
    __syncthreads();
  }

  // Row `row` of the product, for sequence n. The parts are added in one order.
  RNNEXT_INLINE float sum(int row, int n) const {
    float total = 0.0f;
    for (int warp = 0; warp < kPersistentWarps; ++warp) {
      total += sums[(warp * tiling.sequences() + n) * tiling.sums_stride() + row];
    }
    return total;
  }

 private:
  // Some tiles of rows, by at most so many of columns.
  template <int Rows, int Columns>
  RNNEXT_INLINE void multiply_tiles(const uint2* operand, int row_tile) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, columns = tiling.columns;
    const bool exact = p.precision == Precision::kSplit;
    const uint4* const rows = reinterpret_cast<const uint4*>(weights) + row_tile * tiling.depth * 32 + lane;
    // So many tiles of the operand are on their way at a time: each takes the time of a journey to the second-level cache.
    constexpr int kAhead = Columns <= 3 ? 8 : 2;
    float d[Rows][Columns][4] = {};
    for (int first = warp; first < tiling.depth; first += kPersistentWarps * kAhead) {
      uint32_t b[kAhead][Columns][2] = {};
#pragma unroll
      for (int s = 0; s < kAhead; ++s) {
        const int tile = first + s * kPersistentWarps;
#pragma unroll
        for (int j = 0; j < Columns; ++j) {
          if (tile < tiling.depth && j < columns) {
            const uint2 words = load_shared_by_blocks(operand + (tile * columns + j) * 32 + lane);
            b[s][j][0] = words.x, b[s][j][1] = words.y;
          }
        }
      }
#pragma unroll
      for (int s = 0; s < kAhead; ++s) {
        const int tile = first + s * kPersistentWarps;
        if (tile >= tiling.depth) break;
#pragma unroll
        for (int i = 0; i < Rows; ++i) {
          const uint4 words = rows[(i * tiling.depth + tile) * 32];
          const uint32_t a[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
          for (int j = 0; j < Columns; ++j) {
            if (j < columns) O::multiply(d[i][j], a, b[s][j], exact);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < Rows; ++i) {
#pragma unroll
      for (int j = 0; j < Columns; ++j) {
        if (j >= columns) continue;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int row = (row_tile + i) * 16 + lane / 4 + k / 2 * 8, n = j * 8 + lane % 4 * 2 + k % 2;
          sums[(warp * tiling.sequences() + n) * tiling.sums_stride() + row] = d[i][j][k];
        }
      }
    }
  }
};

}  // namespace rnnext::gpu
