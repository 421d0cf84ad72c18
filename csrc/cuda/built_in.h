// The built-in cells. Each is compiled in one of the files cells_*.cu, by RNNEXT_BUILT_IN(LSTM) and so on.
#pragma once

#include "cuda/cell.h"

#define RNNEXT_BUILT_IN_CELLS(X) X(LSTM) X(GRU) X(RNNTanh) X(RNNRelu) X(ProjectedLSTM)

namespace rnnext::cuda {

#define RNNEXT_DECLARE(Struct) \
  template <class T>           \
  const Cell<T>& built_in_##Struct();
RNNEXT_BUILT_IN_CELLS(RNNEXT_DECLARE)
#undef RNNEXT_DECLARE

}  // namespace rnnext::cuda

#define RNNEXT_BUILT_IN(Struct)                                        \
  template <class T>                                                   \
  const Cell<T>& built_in_##Struct() {                                 \
    static constexpr Cell<T> cell = gpu::whole_cell<T, gpu::Struct>(); \
    return cell;                                                       \
  }                                                                    \
  template const Cell<float>& built_in_##Struct<float>();              \
  template const Cell<double>& built_in_##Struct<double>();
