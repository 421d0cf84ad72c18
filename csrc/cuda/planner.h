// The planner: whether a scan runs in one launch, and how it is then cut. Pure functions of the sizes and the chip;
// tests/emulator/test_emulated_planner.py pins what they say.
#pragma once

#include <optional>
#include <string>

#include "cuda/tiling.h"
#include "engine/cell.h"

namespace rnnext {

// Which way a scan may take: RNNEXT_CUDA_PATH is auto, steps or persistent.
enum class Path { kAuto, kSteps, kPersistent };

struct ChipLimits {
  int multiprocessors;
  int shared;  // bytes of shared memory that a block can have
};

struct ScanSizes {
  int recurrent_gates, states;
  int64_t H, N, steps;
};

// The tiling of a persistent scan, or none where its weights do not fit on the chip. All sequences are in one launch, or
// as many as can be.
std::optional<Tiling> make_tiling(const ScanSizes& sizes, bool forward, Precision precision, const ChipLimits& chip);

// Launches that such a tiling needs for all sequences.
int64_t launches(const Tiling& tiling, int64_t N);

// Why a scan is not worth doing so, or "". The rule waits for measurements: several steps, and one launch.
const char* why_not_persist(const ScanSizes& sizes, const Tiling& tiling);

// Of the environment. Throws where it names none.
Path chosen_path();

std::string to_string(const Tiling& tiling);
std::string to_string(Precision precision);

}  // namespace rnnext
