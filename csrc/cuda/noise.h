// The noise of a cell for the steps of a block.
#pragma once

#include "cuda/elementwise.h"

namespace rnnext::cuda {

// Where nothing is drawn or given: the expectations, once for all blocks.
template <class T, class Scan>
void expect_noise(const Scan& p, T* const* buffers, Stream stream) {
  const CellShape& cell = *p.shape.cell;
  for (int k = 0; k < cell.noises && !p.noise.drawn && !p.given_noise; ++k) {
    const int64_t count = p.steps.most_rows_in_a_block() * p.shape.width(cell.noise[k].width);
    fill(count, static_cast<T>(cell.noise[k].expectation()), buffers[k], stream);
  }
}

template <class T, class Scan>
void draw_noise(const Scan& p, int64_t block, T* const* buffers, Stream stream) {
  const CellShape& cell = *p.shape.cell;
  const Range rows = p.steps.rows_of(block), steps = p.steps.steps_of(block);
  int64_t column = 0;
  for (int k = 0; k < cell.noises; ++k) {
    const Noise& kind = cell.noise[k];
    const int64_t width = p.shape.width(kind.width);
    // Of some rows, which are in the source from row `first` on, and again after `period` rows.
    const auto put = [&](Range some, int64_t first, int64_t period) {
      T* const target = buffers[k] + (some.begin - rows.begin) * width;
      if (p.given_noise) {
        copy_rows<T>(some.size(), width, p.given_noise.from(first, column), {target, width}, stream);
      } else if (p.noise.drawn) {
        noise(kind, first * width, period * width, some.size() * width, target, p.noise.seed, p.noise.scan, k, stream);
      }
    };
    if (!kind.per_sequence) {
      put(rows, rows.begin, rows.size());
    } else if (!p.steps.offsets && !p.given_noise) {
      put(rows, 0, p.steps.N);
    } else {
      for (int64_t t = steps.begin; t < steps.end; ++t) {
        const Range some{p.steps.first(t), p.steps.first(t + 1)};
        put(some, 0, some.size());
      }
    }
    column += width;
  }
}

}  // namespace rnnext::cuda
