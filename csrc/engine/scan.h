// How time passes, for every cell and every backend. A backend holds the parameters of one scan and supplies the
// pieces of work; on the CPU each thread of a team runs these loops on its own part.
#pragma once

#include "engine/params.h"

namespace rnnext {

template <class Backend>
void scan_forward(Backend& backend, const Steps& steps) {
  backend.begin();
  const Range blocks = steps.touched_blocks();
  for (int64_t i = 0; i < blocks.size(); ++i) {
    const int64_t b = steps.reverse ? blocks.end - 1 - i : blocks.begin + i;
    backend.project_input(b);
    const Range r = steps.scanned_steps_of(b);
    for (int64_t j = 0; j < r.size(); ++j) {
      const int64_t t = steps.reverse ? r.end - 1 - j : r.begin + j;
      if (steps.begins_segment(t)) backend.keep_checkpoint(steps.segment_of(t));
      backend.step(t);
    }
  }
}

// The same blocks and steps in the opposite order. Gradients of the weights are summed block by block.
template <class Backend>
void scan_backward(Backend& backend, const Steps& steps) {
  backend.begin();
  const Range blocks = steps.whole_blocks();
  for (int64_t i = 0; i < blocks.size(); ++i) {
    const int64_t b = steps.reverse ? blocks.begin + i : blocks.end - 1 - i;
    const Range r = steps.steps_of(b);
    backend.begin_block(b);
    for (int64_t j = 0; j < r.size(); ++j) backend.step(steps.reverse ? r.begin + j : r.end - 1 - j);
    backend.input_gradient(b);
    backend.weight_gradients(b, i == 0);
  }
}

}  // namespace rnnext
