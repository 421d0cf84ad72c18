// What tests set of the emulated device.
#include <torch/library.h>

#include "cuda/planner.h"
#include "emulator.h"

namespace {

// Another device: its multiprocessors and bytes of shared memory, and the seed of the order in which threads run.
void set_device(int64_t multiprocessors, int64_t shared, int64_t cluster, int64_t seed,
                std::optional<int64_t> running_cluster) {
  emulator::Machine& m = emulator::machine();
  m.chip = {m.chip.number + 1, static_cast<int>(multiprocessors), static_cast<int>(shared), static_cast<int>(cluster),
            static_cast<int>(running_cluster.value_or(cluster))};
  m.random = static_cast<uint64_t>(seed) * 2654435761u + 1;
}

// units, slices, groups, columns, rows, depth, words, row_warps, bytes of shared memory, expected cycles of a step; or
// nothing, where there is no tiling.
std::vector<int64_t> tiling(bool cluster, int64_t gates, int64_t states, int64_t H, int64_t N, bool forward,
                            int64_t precision, int64_t multiprocessors, int64_t shared) {
  const rnnext::ScanSizes sizes{static_cast<int>(gates), static_cast<int>(states), H, N, 100};
  const auto p = static_cast<rnnext::Precision>(precision);
  const rnnext::ChipLimits chip{static_cast<int>(multiprocessors), static_cast<int>(shared), 16};
  const auto t = cluster ? rnnext::make_cluster_tiling(sizes, forward, p, chip)
                         : rnnext::make_grid_tiling(sizes, forward, p, chip);
  if (!t) return {};
  return {t->units,
          t->slices,
          t->groups,
          t->columns,
          t->rows,
          t->depth,
          t->words,
          t->row_warps,
          t->shared_bytes(states),
          static_cast<int64_t>(rnnext::step_cycles(*t, sizes, p, chip))};
}

// For each place in the depth: the gate and unit there, and the place that these have.
std::vector<int64_t> depth_places(int64_t gates, int64_t chunk, int64_t depth) {
  rnnext::Tiling t;
  t.gates = static_cast<int>(gates);
  t.chunk = static_cast<int>(chunk);
  std::vector<int64_t> places;
  for (int k = 0; k < depth; ++k) {
    const auto from = t.exchanged_at(k);
    places.insert(places.end(), {from.gate, from.unit, t.depth_of(from.gate, from.unit)});
  }
  return places;
}

std::vector<int64_t> exchange_places(int64_t words, int64_t columns, int64_t depth) {
  std::vector<int64_t> places;
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t n = 0; n < 8 * columns; ++n) {
      places.push_back(rnnext::exchange_place(static_cast<int>(words), static_cast<int>(columns), static_cast<int>(k),
                                              static_cast<int>(n)));
    }
  }
  return places;
}

}  // namespace

TORCH_LIBRARY(rnnext_emulator, m) {
  m.def("set_device(int multiprocessors, int shared, int cluster, int seed, int? running_cluster=None) -> ()",
        &set_device);
  m.def(
      "tiling(bool cluster, int gates, int states, int H, int N, bool forward, int precision, int multiprocessors, "
      "int shared) -> int[]",
      &tiling);
  m.def("depth_places(int gates, int chunk, int depth) -> int[]", &depth_places);
  m.def("exchange_places(int words, int columns, int depth) -> int[]", &exchange_places);
}
