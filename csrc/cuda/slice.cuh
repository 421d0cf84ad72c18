// What a block of a persistent scan is: a slice of units and a group of sequences; how it multiplies its weights with what the
// slices exchange.
#pragma once

#include "cuda/scalar.h"

#include "cuda/exchange.cuh"
#include "cuda/persistent.h"

namespace rnnext::gpu {

// Kinds of operands. Left and Right: what a lane multiplies by, of a tile of weights and of the exchange; see multiply_tf32 in
// device.h for the tiles.
template <int N>
struct Registers {
  uint32_t values[N];

  Registers() = default;
  RNNEXT_INLINE explicit Registers(const uint32_t (&x)[N]) {
    for (int i = 0; i < N; ++i) values[i] = x[i];
  }
};

struct SixteenBits {
  static constexpr int words = 2;
  using Element = uint16_t;
  using Left = Registers<4>;
  using Right = Registers<2>;
};

struct BFloat16Operand : SixteenBits {
  RNNEXT_INLINE static Element round(float x) { return bfloat16_bits(x); }
  RNNEXT_INLINE static void multiply(float (&d)[4], const Left& a, const Right& b, bool) {
    multiply_bfloat16(d, a.values, b.values);
  }
};

struct HalfOperand : SixteenBits {
  RNNEXT_INLINE static Element round(float x) { return half_bits(x); }
  RNNEXT_INLINE static void multiply(float (&d)[4], const Left& a, const Right& b, bool) {
    multiply_half(d, a.values, b.values);
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

    Split() = default;
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
  using Left = Split<4>;
  using Right = Split<2>;

  RNNEXT_INLINE static void multiply(float (&d)[4], const Left& a, const Right& b, bool exact) {
    if (exact) {
      multiply_tf32(d, a.low, b.finite);
      multiply_tf32(d, a.finite, b.low);
    }
    multiply_tf32(d, a.high, b.high);
  }
};

// What a block is: its slice of units, its group of sequences, its memory.
template <class O, class X>
struct Slice {
  using Element = typename O::Element;

  const cuda::PersistentScan& p;
  const Tiling& tiling;
  const int unit, units;  // the first one, and how many
  const int64_t first;    // sequence
  const int sequences;
  uint32_t* const weights;  // [rows][depth][32 lanes][4]
  float* const sums;        // [parts of the depth][sequences][sums_stride]
  uint32_t* const of_exchange;
  float* const carry;  // [states][sequences][units of a whole slice]
  const X exchange;
  const int first_depth;  // of this slice's first unit

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
        of_exchange(reinterpret_cast<uint32_t*>(sums + tiling.sums_words())),
        carry(reinterpret_cast<float*>(of_exchange) + tiling.shared_exchange_words()),
        exchange(scan, of_exchange),
        first_depth(tiling.depth_of(0, unit)) {
    exchange.begin();
  }

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

  // value_of(row, gate, unit): the weight by which an exchanged value comes into a row.
  template <class ValueOf>
  RNNEXT_INLINE void load_weights(int rows, ValueOf value_of) const {
    const int words = static_cast<int>(tiling.weight_words());
    for (int i = threadIdx.x; i < words; i += kPersistentThreads) {
      const int r = i % 4, lane = i / 4 % 32, depth_tile = i / 128 % tiling.depth, row_tile = i / 128 / tiling.depth;
      uint32_t word = 0;
      for (int v = 0; v < O::words; ++v) {
        const WeightPlace place = weight_place(O::words, row_tile, depth_tile, lane, r, v);
        const Tiling::Exchanged from = tiling.exchanged_at(place.k);
        const float value = place.row < rows && from.unit < p.H ? value_of(place.row, from.gate, from.unit) : 0.0f;
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

  // A value of a unit of this slice, for all slices.
  RNNEXT_INLINE void publish(int buffer, int gate, int64_t of_unit, int n, float value) const {
    const int k = first_depth + gate * tiling.chunk + static_cast<int>(of_unit) - unit;
    reinterpret_cast<Element*>(exchange.buffer(buffer))[exchange_place(O::words, tiling.columns, k, n)] =
        O::round(value);
  }

  // sums = weights times what is in a buffer, in parts of the depth.
  RNNEXT_INLINE void multiply(int buffer) const {
    const uint2* const operand = reinterpret_cast<const uint2*>(exchange.buffer(buffer));
    const int warp = threadIdx.x / 32;
    for (int row_tile = 2 * (warp % tiling.row_warps); row_tile < tiling.rows; row_tile += 2 * tiling.row_warps) {
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
    for (int part = 0; part < tiling.depth_warps(); ++part) {
      total += sums[(part * tiling.sequences() + n) * tiling.sums_stride() + row];
    }
    return total;
  }

 private:
  // Some tiles of rows, by at most so many of columns.
  template <int Rows, int Columns>
  RNNEXT_INLINE void multiply_tiles(const uint2* operand, int row_tile) const {
    const int part = threadIdx.x / 32 / tiling.row_warps, parts = tiling.depth_warps();
    const int lane = threadIdx.x % 32, columns = tiling.columns;
    const bool exact = p.precision == Precision::kSplit;
    const uint4* const rows = reinterpret_cast<const uint4*>(weights) + row_tile * tiling.depth * 32 + lane;
    constexpr int kAhead = X::ahead(Columns);
    float d[Rows][Columns][4] = {};
    for (int first = part; first < tiling.depth; first += parts * kAhead) {
      uint32_t b[kAhead][Columns][2] = {};
#pragma unroll
      for (int s = 0; s < kAhead; ++s) {
        const int tile = first + s * parts;
#pragma unroll
        for (int j = 0; j < Columns; ++j) {
          if (tile < tiling.depth && j < columns) {
            const uint2 words = X::load(operand + (tile * columns + j) * 32 + lane);
            b[s][j][0] = words.x, b[s][j][1] = words.y;
          }
        }
      }
#pragma unroll
      for (int s = 0; s < kAhead; ++s) {
        const int tile = first + s * parts;
        if (tile >= tiling.depth) break;
        // Each operand is split once, not for each product that it is in.
        typename O::Left a[Rows];
#pragma unroll
        for (int i = 0; i < Rows; ++i) {
          const uint4 words = rows[(i * tiling.depth + tile) * 32];
          a[i] = typename O::Left({words.x, words.y, words.z, words.w});
        }
#pragma unroll
        for (int j = 0; j < Columns; ++j) {
          if (j >= columns) continue;
          const typename O::Right right(b[s][j]);
#pragma unroll
          for (int i = 0; i < Rows; ++i) O::multiply(d[i][j], a[i], right, exact);
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
          sums[(part * tiling.sequences() + n) * tiling.sums_stride() + row] = d[i][j][k];
        }
      }
    }
  }
};

}  // namespace rnnext::gpu
