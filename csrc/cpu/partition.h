// How the steps of a scan are shared out over threads: a pure function of the shape and the number of threads.
#pragma once

#include <vector>

#include "cpu/team.h"
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

// With fewer sequences a thread than this, a product is bound by reading the weights.
constexpr int64_t kFewRows = 4;
// Recurrent weights of more bytes than this leave the caches between two steps.
constexpr int64_t kLargeWeights = 12 << 20;
// Multiply-adds for each thread that are worth a meeting of the team; in all, that are worth a team.
constexpr int64_t kWorthMeeting = 20000, kWorthTeam = 100000;

// `columns` and `depth`: of the matrix that each row is multiplied by.
inline int useful_threads(const Steps& steps, int64_t columns, int64_t depth) {
  return steps.total() * columns * depth < kWorthTeam ? 1 : available_threads();
}

// `columns`: of the recurrent matrix; `bytes`: of one value.
inline Partition partition(int threads, const Steps& steps, int64_t H, int64_t columns, int64_t bytes) {
  const bool bound_by_weights = steps.N < kFewRows * threads || H * columns * bytes > kLargeWeights;
  const bool worth_meeting = H >= 2 * kUnitGrain * threads && steps.N * H * columns >= threads * kWorthMeeting;
  if (threads > 1 && bound_by_weights && worth_meeting) {
    return {true, threads, {}};
  }
  // Equal numbers of steps, not of sequences: the first sequences are the longest.
  Partition p{false, threads, {}};
  std::vector<int64_t> tokens(steps.N + 1, 0);  // tokens[n]: steps of sequences 0 .. n - 1
  for (int64_t t = 0; t < steps.T; ++t) tokens[steps.rows(t)] += 1;
  for (int64_t n = steps.N - 1, alive = 0; n >= 0; --n) {
    alive += tokens[n + 1];
    tokens[n + 1] = alive;  // length of sequence n
  }
  tokens[0] = 0;
  for (int64_t n = 0; n < steps.N; ++n) tokens[n + 1] += tokens[n];
  int64_t begin = 0;
  for (int i = 1; i <= threads; ++i) {
    const int64_t target = tokens[steps.N] * i / threads;
    int64_t end = std::lower_bound(tokens.begin() + begin, tokens.end(), target) - tokens.begin();
    if (i == threads) end = steps.N;
    p.sequences.push_back({begin, end});
    begin = end;
  }
  return p;
}

}  // namespace rnnext::cpu
