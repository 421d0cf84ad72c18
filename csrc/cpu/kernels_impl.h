// The body of kernels.h for one instruction set. Included once by each file in isa/, which sets RNNEXT_ISA (the
// namespace) and RNNEXT_VECTOR_BYTES. No header of torch or of the C++ library with templates may be included here:
// the linker could pick their copy, compiled for this set, for a machine that lacks it.
#pragma once

#include "cpu/simd.h"

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/bfloat16_weights.h"
#include "cpu/gemm_tile.h"
#include "cpu/kernels.h"
#include "cpu/matrix.h"
#include "cpu/random.h"
#include "cpu/step.h"

namespace rnnext::RNNEXT_ISA {

// The list of the built-in cells.
template <class T>
inline constexpr Cell<T> cells[] = {cell<T, LSTM>(), cell<T, GRU>(), cell<T, RNNTanh>(), cell<T, RNNRelu>(),
                                    cell<T, ProjectedLSTM>()};

template <class T>
inline constexpr Kernels<T> table{.cells = cells<T>,
                                  .cell_count = sizeof(cells<T>) / sizeof(Cell<T>),
                                  .gemm = &gemm<T, T>,
                                  .gemm_nt = &gemm_nt<T, T>,
                                  .gemm_tn = &gemm_tn<T>,
                                  .transpose = &transpose<T>,
                                  .column_sums = &column_sums<T>,
                                  .dropout = &dropout<T>,
                                  .noise = &noise<T>};

inline constexpr BFloat16Weights bfloat16_weights{
    .gemm = &gemm<float, uint16_t>, .gemm_nt = &gemm_nt<float, uint16_t>, .widen = &widen, .round = &round};

}  // namespace rnnext::RNNEXT_ISA
