#include "cuda/scalar.h"

#include "cells/lstm.h"
#include "cuda/built_in.h"
#include "cuda/persistent.cuh"

namespace rnnext::cuda {

RNNEXT_BUILT_IN(LSTM)
RNNEXT_BUILT_IN(ProjectedLSTM)

}  // namespace rnnext::cuda
