// The host's part of a persistent scan: whether there is one, its memory, its launches.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>
#include <tuple>

#include "cuda/cell.h"
#include "cuda/memory.h"
#include "cuda/planner.h"

namespace rnnext::cuda {

inline Precision precision_of(Operands operands) {
  if (operands == Operands::kBFloat16) return Precision::kBFloat16;
  if (operands == Operands::kHalf) return Precision::kHalf;
  return allows_tf32() ? Precision::kTf32 : Precision::kSplit;
}

// How a scan goes about its steps: all in one launch with this tiling, or one by one.
struct Route {
  std::optional<Tiling> tiling;
  const char* why_not = "";
  double cycles = 0;  // that a step is expected to take
};

// Whether a cell's kernel can run so. CUDA takes some microseconds to tell, so each answer is kept.
inline bool can_run(const Persistent& kernels, bool forward, Precision precision, const Tiling& t, int device) {
  using Question = std::tuple<const Persistent*, bool, Precision, int, Tiling>;
  static std::mutex mutex;
  static std::map<Question, bool>& answers = *new std::map<Question, bool>;
  const Question question{&kernels, forward, precision, device, t};
  const std::lock_guard lock(mutex);
  const auto [answer, is_new] = answers.try_emplace(question, false);
  if (is_new) answer->second = kernels.can_run(forward, precision, t);
  return answer->second;
}

// `kernels`: of the cell, or null (of float64, there are none). Throws where RNNEXT_CUDA_PATH asks for what can't be.
// `sequences`: the states after every step are wanted, or have gradients.
inline Route find_route(const Shape& shape, const Steps& steps, const Persistent* kernels, bool forward,
                        Precision precision, bool sequences = false) {
  const Path path = chosen_path();
  const CellShape& cell = *shape.cell;
  const ScanSizes sizes{cell.recurrent_gates(), cell.states.count, shape.H(), steps.N,
                        static_cast<int64_t>(steps.scanned.size())};
  const Chip here = chip();
  const ChipLimits limits{here.multiprocessors, here.shared, here.cluster};
  Route route;
  if (path == Path::kSteps) {
    route.why_not = "as RNNEXT_CUDA_PATH says";
  } else if (!kernels || shape.heads > 1) {
    route.why_not = "the cell has no other kernel";
  } else if (sequences) {
    route.why_not = "the states after every step are wanted";
  } else {
    // Blocks that wait for each other must all be on the chip.
    const auto tilings = make_tilings(path, sizes, forward, precision, limits);
    const auto found = std::find_if(tilings.begin(), tilings.end(), [&](const Tiling& t) {
      return can_run(*kernels, forward, precision, t, here.device);
    });
    if (found != tilings.end()) route.tiling = *found;
    if (!route.tiling) route.why_not = "the weights do not fit on the device";
  }
  if (path != Path::kAuto && path != Path::kSteps && !route.tiling) {
    throw std::runtime_error(std::string("rnnext: RNNEXT_CUDA_PATH=") + std::getenv("RNNEXT_CUDA_PATH") + ", but " +
                             cell.name + " can't be done so: " + route.why_not + "; unset it, or set it to auto");
  }
  if (path == Path::kAuto && route.tiling) {
    route.why_not = why_not_persist(*route.tiling, sizes, forward, precision, limits);
    if (*route.why_not) route.tiling.reset();
  }
  route.cycles = route.tiling ? step_cycles(*route.tiling, sizes, precision, limits)
                              : step_cycles(sizes, forward, precision, limits);
  return route;
}

// Of a scan in float32, forward or backward.
class PersistentRun {
 public:
  template <class Scan>
  PersistentRun(const Scan& p, const Persistent* kernels, bool forward, bool sequences, Arena& arena)
      : kernels_(kernels),
        H_(p.shape.H()),
        steps_(p.steps),
        w_hh_(p.w[0].w_hh),
        precision_(precision_of(p.operands)),
        tiling_(find_route(p.shape, p.steps, kernels, forward, precision_, sequences).tiling) {
    if (!tiling_) return;
    if (through_memory()) {
      arena.add(&exchange_, exchange_words());
      arena.add(&flags_, flags());
    }
    if (steps_.offsets) arena.add(&offsets_, steps_.T + 1);
  }

  explicit operator bool() const { return tiling_.has_value(); }

  void begin(Stream stream) const {
    if (offsets_) upload(steps_.offsets, steps_.T + 1, offsets_, stream);
  }

  // Calls launch(scan) for as many sequences at a time as the tiling takes.
  template <class Launch>
  void each(Range run, int64_t first_row, Stream stream, Launch launch) const {
    const int64_t most = int64_t{tiling_->groups} * tiling_->sequences();
    for (int64_t begin = 0; begin < steps_.N; begin += most) {
      if (through_memory()) {
        clear(exchange_, exchange_words() * sizeof(uint32_t), stream);
        clear(flags_, flags() * sizeof(unsigned), stream);
      }
      launch(PersistentScan{*tiling_, precision_, steps_.N, offsets_, steps_.reverse, run, first_row, begin,
                            std::min(most, steps_.N - begin), H_, w_hh_, exchange_, flags_});
    }
  }

  const Persistent& kernels() const { return *kernels_; }

  // Whether any of these is there.
  template <class T>
  static bool any(const Rows<T> (&sequences)[kMaxStates]) {
    return std::any_of(std::begin(sequences), std::end(sequences), [](const auto& rows) { return bool(rows); });
  }

 private:
  bool through_memory() const { return tiling_->exchange == Exchange::kGrid; }
  int64_t flags() const { return int64_t{tiling_->groups} * tiling_->slices; }
  int64_t exchange_words() const { return 2 * tiling_->groups * tiling_->exchange_words(); }

  const Persistent* const kernels_;
  const int64_t H_;
  const Steps steps_;
  const float* const w_hh_;
  const Precision precision_;
  const std::optional<Tiling> tiling_;
  uint32_t* exchange_ = nullptr;
  unsigned* flags_ = nullptr;
  int64_t* offsets_ = nullptr;
};

}  // namespace rnnext::cuda
