// The planner: whether a scan runs in one launch, and how it is then cut. Pure functions of the sizes and the chip;
// tests/emulator/test_emulated_planner.py pins what they say.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cuda/tiling.h"
#include "engine/cell.h"

namespace rnnext {

// Which way a scan may take: RNNEXT_CUDA_PATH is auto, steps, persistent, or one kind of the last: grid or cluster.
enum class Path { kAuto, kSteps, kPersistent, kGrid, kCluster };

struct ChipLimits {
  int multiprocessors;
  int shared;   // bytes of shared memory that a block can have
  int cluster;  // blocks of the largest cluster, or 0
};

struct ScanSizes {
  int recurrent_gates, states;
  int64_t H, N, steps;
  int64_t rows_of_weights() const { return recurrent_gates * H; }
};

// The tiling of a persistent scan whose slices exchange through memory, or none where its weights do not fit on the chip. All
// sequences are in one launch, or as many as can be.
std::optional<Tiling> make_grid_tiling(const ScanSizes& sizes, bool forward, Precision precision,
                                       const ChipLimits& chip);

// Of one whose slices are a cluster, or one block; none where its weights do not fit. All sequences are in one launch.
std::optional<Tiling> make_cluster_tiling(const ScanSizes& sizes, bool forward, Precision precision,
                                          const ChipLimits& chip);

// What a step of all sequences is expected to take, in cycles of the chip's clock: arithmetic from what a multiprocessor does
// in a cycle, by which tilings are compared. It waits for measurements.
double step_cycles(const Tiling& tiling, const ScanSizes& sizes, Precision precision, const ChipLimits& chip);

// Those that `path` allows, the one that is expected to be faster first.
std::vector<Tiling> make_tilings(Path path, const ScanSizes& sizes, bool forward, Precision precision,
                                 const ChipLimits& chip);

// Launches that such a tiling needs for all sequences.
int64_t launches(const Tiling& tiling, int64_t N);

// Of a scan step by step: a product by cuBLAS and the kernel of a stage, with what lies between them.
double step_cycles(const ScanSizes& sizes, bool forward, Precision precision, const ChipLimits& chip);

// Why a scan is not worth doing so, or "".
const char* why_not_persist(const Tiling& tiling, const ScanSizes& sizes, bool forward, Precision precision,
                            const ChipLimits& chip);

// Of the environment. Throws where it names none.
Path chosen_path();

std::string to_string(const Tiling& tiling);
std::string to_string(Precision precision);

}  // namespace rnnext
