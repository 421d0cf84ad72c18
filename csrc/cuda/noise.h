// The noise of a cell for the steps of a block.
#pragma once

#include "cuda/elementwise.h"

namespace rnnext::cuda {

// Where nothing is drawn: the expectations, once for all blocks.
template <class T, class Scan>
void expect_noise(const Scan& p, T* const* buffers, Stream stream) {
  const CellShape& cell = *p.shape.cell;
  for (int k = 0; k < cell.noises && !p.noise.drawn; ++k) {
    const int64_t count = p.steps.most_rows_in_a_block() * p.shape.width(cell.noise[k].width);
    fill(count, static_cast<T>(cell.noise[k].expectation()), buffers[k], stream);
  }
}

template <class T, class Scan>
void draw_noise(const Scan& p, int64_t block, T* const* buffers, Stream stream) {
  const CellShape& cell = *p.shape.cell;
  const Range rows = p.steps.rows_of(block), steps = p.steps.steps_of(block);
  for (int k = 0; k < cell.noises && p.noise.drawn; ++k) {
    const Noise& kind = cell.noise[k];
    const int64_t width = p.shape.width(kind.width);
    const auto draw = [&](Range some, int64_t first, int64_t period) {
      noise(kind, first, period, some.size() * width, buffers[k] + (some.begin - rows.begin) * width, p.noise.seed,
            p.noise.scan, k, stream);
    };
    if (!kind.per_sequence) {
      draw(rows, rows.begin * width, rows.size() * width);
    } else if (!p.steps.offsets) {
      draw(rows, 0, p.steps.N * width);
    } else {
      for (int64_t t = steps.begin; t < steps.end; ++t) {
        const Range some{p.steps.first(t), p.steps.first(t + 1)};
        draw(some, 0, some.size() * width);
      }
    }
  }
}

}  // namespace rnnext::cuda
