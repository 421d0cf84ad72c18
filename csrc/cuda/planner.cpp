#include "cuda/planner.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string_view>

namespace rnnext {
namespace {

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

std::optional<Tiling> make_tiling(const ScanSizes& s, bool forward, Precision precision, const ChipLimits& chip) {
  // Forward, a slice has the rows of W_hh of all gates of its units; backward, the columns of its units.
  const int64_t rows_of_unit = forward ? s.recurrent_gates : 1;
  const int64_t depth = forward ? s.H : s.recurrent_gates * s.H;
  const int64_t most_rows = 16 * Tiling::kMostRowTiles;
  const int grain = forward ? 4 : 16;  // 16 columns fill a tile
  for (int64_t units = grain; units * rows_of_unit <= most_rows; units += grain) {
    Tiling t;
    t.units = static_cast<int>(units);
    t.slices = static_cast<int>(ceil_div(s.H, units));
    // Fewer than 8 units a slice only add to what is exchanged.
    const bool more_would_fit = units < 8 && (units + grain) * rows_of_unit <= most_rows && s.H > units;
    if (t.slices > chip.multiprocessors || more_would_fit) continue;
    t.words = values_in_word(precision);
    t.rows = static_cast<int>(ceil_div(units * rows_of_unit, 16));
    t.depth = static_cast<int>(ceil_div(depth, t.tile_depth()));
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

int64_t launches(const Tiling& tiling, int64_t N) {
  return ceil_div(N, int64_t{tiling.groups} * tiling.sequences());
}

const char* why_not_persist(const ScanSizes& sizes, const Tiling& tiling) {
  if (sizes.steps < 4) return "few steps";
  if (launches(tiling, sizes.N) > 1) return "more sequences than fit in one launch";
  return "";
}

Path chosen_path() {
  const char* given = std::getenv("RNNEXT_CUDA_PATH");
  const std::string_view path = given ? given : "auto";
  if (path == "auto" || path.empty()) return Path::kAuto;
  if (path == "steps") return Path::kSteps;
  if (path == "persistent") return Path::kPersistent;
  throw std::runtime_error("RNNEXT_CUDA_PATH=" + std::string(path) + " is not one of: auto, steps, persistent");
}

std::string to_string(const Tiling& t) {
  return std::to_string(t.slices) + " slices of " + std::to_string(t.units) + " units, " + std::to_string(t.groups) +
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
