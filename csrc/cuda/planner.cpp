#include "cuda/planner.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string_view>

namespace rnnext {
namespace {

constexpr int64_t kMostGroups = 65535;  // of a grid's second dimension

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// The least number of column tiles that there are kernels for; the most, where more are asked for.
int column_tiles(int64_t wanted) {
  for (const int columns : Tiling::kColumnTiles) {
    if (columns >= wanted) return columns;
  }
  return std::end(Tiling::kColumnTiles)[-1];
}

}  // namespace

std::optional<Tiling> make_grid_tiling(const ScanSizes& s, bool forward, Precision precision, const ChipLimits& chip) {
  // Forward, a slice has the rows of W_hh of all gates of its units; backward, the columns of its units.
  const int64_t rows_of_unit = forward ? s.recurrent_gates : 1;
  constexpr int64_t most_rows = 64;    // the exchange is read anew for every two tiles of them
  const int grain = forward ? 4 : 16;  // 16 columns fill a tile
  for (int64_t units = grain; units * rows_of_unit <= most_rows; units += grain) {
    Tiling t;
    t.units = static_cast<int>(units);
    t.slices = static_cast<int>(ceil_div(s.H, units));
    // Fewer than 8 units a slice only add to what is exchanged.
    const bool more_would_fit = units < 8 && (units + grain) * rows_of_unit <= most_rows && s.H > units;
    if (t.slices > chip.multiprocessors || more_would_fit) continue;
    t.words = values_in_word(precision);
    t.gates = forward ? 1 : s.recurrent_gates;
    t.chunk = static_cast<int>(s.H);
    t.rows = static_cast<int>(ceil_div(units * rows_of_unit, 16));
    t.depth = static_cast<int>(ceil_div(t.gates * s.H, t.tile_depth()));
    const int64_t tiles = ceil_div(s.N, 8);
    t.groups = static_cast<int>(std::min<int64_t>(tiles, chip.multiprocessors / t.slices));
    // As many sequences as fit, where not all do.
    for (int64_t wanted = ceil_div(tiles, t.groups); wanted > 0; --wanted) {
      t.columns = column_tiles(wanted);
      if (t.shared_bytes(s.states) <= chip.shared) {
        t.groups = static_cast<int>(std::min<int64_t>(t.groups, ceil_div(tiles, t.columns)));
        return t;
      }
    }
  }
  return std::nullopt;
}

std::optional<Tiling> make_cluster_tiling(const ScanSizes& s, bool forward, Precision precision,
                                          const ChipLimits& chip) {
  std::optional<Tiling> best;
  double best_cycles = 0;
  for (int blocks = 1; blocks <= chip.cluster; ++blocks) {
    Tiling t;
    t.exchange = Exchange::kCluster;
    t.words = values_in_word(precision);
    // Whole tiles of depth, so that what a slice gives to the others lies together.
    t.units = static_cast<int>(ceil_div(ceil_div(s.H, blocks), t.tile_depth())) * t.tile_depth();
    t.slices = static_cast<int>(ceil_div(s.H, t.units));
    if (t.slices != blocks) continue;
    t.gates = forward ? 1 : s.recurrent_gates;
    t.chunk = t.units;
    t.rows = static_cast<int>(ceil_div(int64_t{t.units} * (forward ? s.recurrent_gates : 1), 16));
    t.depth = t.slices * t.gates * t.units / t.tile_depth();
    while (t.row_warps < kPersistentWarps && 2 * t.row_warps < t.rows) t.row_warps *= 2;
    const int64_t tiles = ceil_div(s.N, 8);
    for (const int columns : Tiling::kColumnTiles) {
      t.columns = columns;
      t.groups = static_cast<int>(ceil_div(tiles, columns));
      if (t.shared_bytes(s.states) > chip.shared || t.groups > kMostGroups) continue;
      const double cycles = step_cycles(t, s, precision, chip);
      if (!best || cycles < best_cycles) best = t, best_cycles = cycles;
      if (columns >= tiles) break;
    }
  }
  return best;
}

double step_cycles(const Tiling& t, const ScanSizes& s, Precision precision, const ChipLimits& chip) {
  const bool in_cluster = t.exchange == Exchange::kCluster;
  // A tile of products takes two cycles of the four tensor cores; as three of TF32 six, and splitting the operands some time
  // beside them, most of it for the weights.
  const double tiles = double(t.rows) * t.depth * t.columns;
  const double products = tiles * (precision == Precision::kSplit ? std::max(6.0, 2 + 7.0 / t.columns) : 2);
  // Shared memory gives 128 bytes a cycle: weights, partial sums written and read, and in a cluster what is exchanged, once
  // for each warp that has rows of its own.
  const double words = t.weight_words() + 2.0 * t.sums_words() + (in_cluster ? t.row_warps * t.exchange_words() : 0);
  // The second-level cache gives each multiprocessor 24 bytes a cycle.
  const double from_memory = in_cluster ? 0 : 4.0 * ceil_div(t.rows, 2) * t.exchange_words() / 24;
  const double elementwise = 400 + 100 * ceil_div(t.units * std::min<int64_t>(t.sequences(), s.N), kPersistentThreads);
  // Until all have what all have posted.
  const double hand_off = in_cluster ? (t.slices > 1 ? 700 : 0) : 1800;
  const double step = std::max(products, words / 32) + from_memory + elementwise + hand_off;
  const int64_t blocks = int64_t{t.slices} * t.groups;
  return step * (in_cluster ? ceil_div(blocks, chip.multiprocessors) : launches(t, s.N));
}

std::vector<Tiling> make_tilings(Path path, const ScanSizes& sizes, bool forward, Precision precision,
                                 const ChipLimits& chip) {
  std::vector<Tiling> tilings;
  if (path != Path::kCluster) {
    if (const auto t = make_grid_tiling(sizes, forward, precision, chip)) tilings.push_back(*t);
  }
  if (path != Path::kGrid) {
    if (const auto t = make_cluster_tiling(sizes, forward, precision, chip)) tilings.push_back(*t);
  }
  std::sort(tilings.begin(), tilings.end(), [&](const Tiling& a, const Tiling& b) {
    return step_cycles(a, sizes, precision, chip) < step_cycles(b, sizes, precision, chip);
  });
  return tilings;
}

int64_t launches(const Tiling& tiling, int64_t N) {
  if (tiling.exchange == Exchange::kCluster) return 1;
  return ceil_div(N, int64_t{tiling.groups} * tiling.sequences());
}

double step_cycles(const ScanSizes& s, bool forward, Precision precision, const ChipLimits& chip) {
  const bool half = values_in_word(precision) == 2;
  // Of a multiprocessor in a cycle, at half of its peak: multiply-adds of tensor cores, or of float32 as it is.
  const double rate = (half ? 2048 : precision == Precision::kTf32 ? 1024 : 128) / 2.0 * chip.multiprocessors;
  const double values = double(s.rows_of_weights()) * s.H;
  const double from_memory = values * (half ? 2 : 4) / (24.0 * chip.multiprocessors);
  // Kernels that begin one after the other: in half precision the operand is rounded first; backward there is one more.
  const int kernels = 2 + half + (forward ? 0 : 1);
  return kernels * 4500.0 + std::max(values * s.N / rate, from_memory);
}

const char* why_not_persist(const Tiling& tiling, const ScanSizes& sizes, bool forward, Precision precision,
                            const ChipLimits& chip) {
  if (sizes.steps < 4) return "few steps";
  if (step_cycles(tiling, sizes, precision, chip) > step_cycles(sizes, forward, precision, chip)) {
    return "many sequences: cuBLAS is expected to be faster";
  }
  return "";
}

Path chosen_path() {
  const char* given = std::getenv("RNNEXT_CUDA_PATH");
  const std::string_view path = given ? given : "auto";
  if (path == "auto" || path.empty()) return Path::kAuto;
  if (path == "steps") return Path::kSteps;
  if (path == "persistent") return Path::kPersistent;
  if (path == "grid") return Path::kGrid;
  if (path == "cluster") return Path::kCluster;
  throw std::runtime_error("RNNEXT_CUDA_PATH=" + std::string(path) +
                           " is not one of: auto, steps, persistent, grid, cluster");
}

std::string to_string(const Tiling& t) {
  const std::string slices = t.exchange == Exchange::kGrid ? std::to_string(t.slices) + " slices of"
                             : t.slices == 1               ? "one block of"
                                                           : "a cluster of " + std::to_string(t.slices) + " blocks of";
  return slices + " " + std::to_string(t.units) + " units, " + std::to_string(t.groups) +
         (t.groups == 1 ? " group" : " groups") + " of up to " + std::to_string(t.sequences()) + " sequences";
}

std::string to_string(Precision precision) {
  switch (precision) {
    case Precision::kBFloat16:
      return "bfloat16";
    case Precision::kHalf:
      return "float16";
    case Precision::kTf32:
      return "TF32";
    case Precision::kSplit:
      return "float32, each as three of TF32";
  }
  return "";
}

}  // namespace rnnext
