// How a persistent scan is cut: the planner's answer, and where things lie in its memory. Host functions and constants,
// tested on any machine.
#pragma once

#include <compare>
#include <cstdint>

namespace rnnext {

constexpr int kPersistentThreads = 256, kPersistentWarps = kPersistentThreads / 32;

// What the operands of a recurrent product are in a persistent scan. kTf32: float32, of which the tensor cores take ten
// bits of the mantissa; kSplit: float32 as the sum of two such, in three products.
enum class Precision : int8_t { kBFloat16, kHalf, kTf32, kSplit };

constexpr int values_in_word(Precision p) {
  return p == Precision::kBFloat16 || p == Precision::kHalf ? 2 : 1;
}

// How slices exchange the values of a step: through memory, from all over the chip, or by shared memory, within a cluster.
enum class Exchange : int8_t { kGrid, kCluster };

// Each block of the grid holds a slice of units and its weights for the whole scan, and takes one group of sequences.
// The product of a step is [rows, depth] x [depth, sequences] in tiles of 16 rows, `tile_depth` deep, of 8 sequences. The
// warps of a block share out the rows, two tiles at a time, and then the depth.
struct Tiling {
  Exchange exchange = Exchange::kGrid;
  int units = 0;      // of a slice; the last one may have fewer
  int slices = 0;     // blocks that exchange states
  int groups = 0;     // of sequences
  int columns = 0;    // tiles of 8 sequences that a group has: one of kColumnTiles
  int rows = 0;       // tiles of 16 rows of weights
  int depth = 0;      // tiles
  int words = 0;      // values in a 32-bit word
  int gates = 0;      // values that are exchanged of a unit: h, or the gradients of its recurrent gates
  int chunk = 0;      // units
  int row_warps = 1;  // a power of two

  auto operator<=>(const Tiling&) const = default;

  static constexpr int kColumnTiles[] = {1, 2, 3, 4, 8};

  constexpr int tile_depth() const { return 8 * words; }
  constexpr int sequences() const { return 8 * columns; }
  constexpr int depth_warps() const { return kPersistentWarps / row_warps; }

  // The depth has the exchanged values by chunks of units, and in a chunk by gates. Through memory all units are one chunk;
  // in a cluster each slice is one, so that what it gives to the others lies together.
  struct Exchanged {
    int gate;
    int64_t unit;  // beyond the last one, where the depth is filled up
  };
  constexpr int depth_of(int gate, int64_t unit) const {
    return static_cast<int>((unit / chunk * gates + gate) * chunk + unit % chunk);
  }
  constexpr Exchanged exchanged_at(int k) const {
    return {k / chunk % gates, int64_t{k / (chunk * gates)} * chunk + k % chunk};
  }
  // Of a warp's partial sums [sequences, rows], the distance between sequences: the lanes of a warp then write to different
  // banks.
  constexpr int sums_stride() const { return 16 * rows + 4; }

  // Words of shared memory: weights, partial sums of each part of the depth, the carry of `states` states; in a cluster,
  // the exchange.
  constexpr int64_t weight_words() const { return int64_t{rows} * depth * 128; }
  constexpr int64_t sums_words() const { return int64_t{depth_warps()} * sequences() * sums_stride(); }
  constexpr int64_t carry_words(int states) const { return int64_t{states} * sequences() * units; }
  constexpr int64_t shared_bytes(int states) const {
    return 4 * (weight_words() + sums_words() + shared_exchange_words() + carry_words(states));
  }
  constexpr int64_t shared_exchange_words() const {
    return exchange == Exchange::kCluster ? kBarrierWords + 2 * exchange_words() : 0;
  }
  static constexpr int64_t kBarrierWords = 4;  // two barriers

  // Words through which the slices of a group exchange a step's values; there are two such buffers. In a cluster, a slice's
  // part is `part_words`, a whole number of tiles.
  constexpr int64_t exchange_words() const { return int64_t{depth} * columns * 64; }
  constexpr int64_t part_words() const { return exchange_words() / slices; }
};

// Where value `k` of the depth and sequence `n` of a group lie in an exchange buffer, counted in values: as the lanes of a
// warp read them.
constexpr int64_t exchange_place(int words, int columns, int k, int n) {
  const int tile = k / (8 * words), within = k % (8 * words);
  const int lane = n % 8 * 4 + within % (4 * words) / words, half = within / (4 * words);
  return (((int64_t{tile} * columns + n / 8) * 32 + lane) * 2 + half) * words + within % words;
}

// The row and the depth of value `i` (of `words`) in register `r` of a lane, for tile (row_tile, depth_tile) of weights.
struct WeightPlace {
  int row, k;
};
constexpr WeightPlace weight_place(int words, int row_tile, int depth_tile, int lane, int r, int i) {
  return {row_tile * 16 + lane / 4 + 8 * (r % 2), depth_tile * 8 * words + lane % 4 * words + 4 * words * (r / 2) + i};
}

}  // namespace rnnext
