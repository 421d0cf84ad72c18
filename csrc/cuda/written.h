// What a library with one written cell, compiled for GPUs, holds; see written.cuh.
#pragma once

#include "cuda/cell.h"

namespace rnnext::cuda {

// Changes whenever cuda/cell.h or engine/cell.h does: a library compiled against another one is refused.
constexpr int kCellVersion = 3;

struct WrittenCell {
  int version;
  const Cell<float>* f32;
  const Cell<double>* f64;
};

}  // namespace rnnext::cuda
