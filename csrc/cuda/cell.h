// A cell's functions on a GPU: what engine/cell.h's Cell is on the CPU.
#pragma once

#include "cuda/device.h"
#include "cuda/persistent.h"
#include "engine/cell.h"

namespace rnnext::cuda {

template <class T>
struct Cell {
  CellShape shape;
  void (*forward[kMaxStages])(const StepForward<T>&, Stream);
  void (*backward[kMaxStages])(const StepBackward<T>&, Stream);
  const Persistent* persistent;  // null where its step has not the form, and for float64
};

}  // namespace rnnext::cuda
