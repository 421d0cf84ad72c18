// A library that holds one cell, written in Python and compiled for GPUs. Its source file,
//
//   #include "cuda/written.cuh"
//   #include "cell.h"                     what codegen printed: a struct as those in cells/
//   RNNEXT_WRITTEN_CUDA_CELL(MyCell)
//
// is compiled once for each type of values, in parallel: RNNEXT_CELL_TYPE is float or double.
#pragma once

#include "cuda/scalar.h"

#include "cuda/persistent.cuh"
#include "cuda/written.h"

extern "C" {
extern const rnnext::cuda::Cell<float> rnnext_cuda_cell_float;
extern const rnnext::cuda::Cell<double> rnnext_cuda_cell_double;
}

#define RNNEXT_PASTE_EXPANDED(a, b) a##b
#define RNNEXT_PASTE(a, b) RNNEXT_PASTE_EXPANDED(a, b)

// rnnext_cuda_cell is the symbol that the registry looks for. Both objects have it; the linker takes one.
#define RNNEXT_WRITTEN_CUDA_CELL(Struct)                                                                    \
  constexpr rnnext::cuda::Cell<RNNEXT_CELL_TYPE> RNNEXT_PASTE(rnnext_cuda_cell_, RNNEXT_CELL_TYPE) =        \
      rnnext::gpu::whole_cell<RNNEXT_CELL_TYPE, rnnext::gpu::Struct>();                                     \
  extern "C" __attribute__((visibility("default"), weak)) const rnnext::cuda::WrittenCell rnnext_cuda_cell; \
  const rnnext::cuda::WrittenCell rnnext_cuda_cell{rnnext::cuda::kCellVersion, &rnnext_cuda_cell_float,     \
                                                   &rnnext_cuda_cell_double};
