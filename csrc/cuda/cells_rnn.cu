#include "cuda/scalar.h"

#include "cells/rnn.h"
#include "cuda/built_in.h"
#include "cuda/persistent.cuh"

namespace rnnext::cuda {

RNNEXT_BUILT_IN(RNNTanh)
RNNEXT_BUILT_IN(RNNRelu)

}  // namespace rnnext::cuda
