// What tests set of the emulated device.
#include <torch/library.h>

#include "cuda/planner.h"
#include "emulator.h"

namespace {

// The chip's multiprocessors and bytes of shared memory, and the seed of the order in which threads run.
void set_device(int64_t multiprocessors, int64_t shared, int64_t seed) {
  emulator::Machine& m = emulator::machine();
  m.chip = {static_cast<int>(multiprocessors), static_cast<int>(shared)};
  m.random = static_cast<uint64_t>(seed) * 2654435761u + 1;
}

// units, slices, groups, columns, rows, depth, words, bytes of shared memory; or nothing, where there is no tiling.
std::vector<int64_t> tiling(int64_t gates, int64_t states, int64_t H, int64_t N, bool forward, int64_t precision,
                            int64_t multiprocessors, int64_t shared) {
  const auto t = rnnext::make_tiling({static_cast<int>(gates), static_cast<int>(states), H, N, 100}, forward,
                                     static_cast<rnnext::Precision>(precision),
                                     {static_cast<int>(multiprocessors), static_cast<int>(shared)});
  if (!t) return {};
  return {t->units, t->slices, t->groups, t->columns, t->rows, t->depth, t->words, t->shared_bytes(states)};
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
  m.def("set_device(int multiprocessors, int shared, int seed) -> ()", &set_device);
  m.def(
      "tiling(int gates, int states, int H, int N, bool forward, int precision, int multiprocessors, int shared) -> "
      "int[]",
      &tiling);
  m.def("exchange_places(int words, int columns, int depth) -> int[]", &exchange_places);
}
