// How the steps of a scan can be shared out over threads; plan.h picks.
#pragma once

#include <algorithm>
#include <vector>

#include "engine/params.h"

namespace rnnext::cpu {

// Units are cut at multiples of a vector register's width.
constexpr int64_t kUnitGrain = 16;

// The units of a part, of `width` in all.
inline Range units_of(int64_t width, int64_t part, int64_t parts) {
  const int64_t grains = (width + kUnitGrain - 1) / kUnitGrain;
  return {std::min(width, grains * part / parts * kUnitGrain),
          std::min(width, grains * (part + 1) / parts * kUnitGrain)};
}

// By rows: each thread takes some sequences through all steps and meets nobody. By units, where the time goes into
// reading the weights: each takes some hidden units of every sequence and reads only its own part of them, and the team
// meets at each step.
struct Partition {
  bool by_units;
  int64_t parts;
  std::vector<Range> sequences;  // of each part, by rows

  // The units of a value of `width` that a part takes.
  Range units(int64_t width, int64_t part) const { return by_units ? units_of(width, part, parts) : Range{0, width}; }
};

}  // namespace rnnext::cpu
