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
    for (Range left = steps.scanned_steps_of(b); left.size() > 0;) {
      const int64_t t = steps.reverse ? left.end - 1 : left.begin;
      if (steps.begins_segment(t)) backend.keep_checkpoint(steps.segment_of(t));
      const Range run = steps.until_segment(left);
      backend.run(run);
      steps.reverse ? left.end = run.begin : left.begin = run.end;
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
    backend.begin_block(b);
    backend.run(steps.steps_of(b));
    backend.input_gradient(b);
    backend.weight_gradients(b, i == 0);
  }
}

}  // namespace rnnext
