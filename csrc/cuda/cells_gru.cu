#include "cuda/scalar.h"

#include "cells/gru.h"
#include "cuda/built_in.h"
#include "cuda/persistent.cuh"

namespace rnnext::cuda {

RNNEXT_BUILT_IN(GRU)

}  // namespace rnnext::cuda
