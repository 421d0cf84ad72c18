// A scan in one launch: what the host gives a persistent kernel.
#pragma once

#include "cuda/device.h"
#include "cuda/tiling.h"
#include "engine/params.h"

namespace rnnext::cuda {

// Some steps of a scan, for some sequences. With it goes a StepForward or StepBackward whose pointers are those of sequence
// 0 and of row 0: of the whole sequence; of x, noise and gradients, of the block.
struct PersistentScan {
  Tiling tiling;
  Precision precision;
  int64_t N;
  const int64_t* offsets;  // as in Steps, on the device
  bool reverse;
  Range run;          // steps
  int64_t first_row;  // of the block
  int64_t begin, sequences;
  int64_t H;
  const float* w_hh;  // [recurrent gates * H, H]
  // Of an exchange through memory:
  uint32_t* exchange;  // [groups][2][exchange_words], zero
  unsigned* flags;     // [groups][slices], zero
};

// Backward: the states before the first step of each sequence, and which steps are scanned (see Steps).
struct InitialStates {
  Rows<const float> rows[kMaxStates];
  Range scanned;
};

// The kernels of a cell.
struct Persistent {
  bool (*can_run)(bool forward, Precision precision, const Tiling&);
  void (*forward)(const StepForward<float>&, const PersistentScan&, Stream);
  void (*backward)(const StepBackward<float>&, const PersistentScan&, const InitialStates&, Stream);
};

}  // namespace rnnext::cuda
