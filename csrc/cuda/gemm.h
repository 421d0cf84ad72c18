// Matrix products on the GPU: cuBLAS, by way of torch, so that handles, workspaces and TF32 are as torch's user set them.
#pragma once

#include "cuda/device.h"
#include "engine/params.h"

namespace rnnext::cuda {

// An operand in row-major order: of the scan's type, or rounded (see Operands).
struct Matrix {
  const void* data;
  int64_t stride;
  bool transposed = false;
};

// Several products of one form: each begins so many elements after the one before.
struct Batch {
  int64_t count = 1, a = 0, b = 0, c = 0;
};

// C [m, n] (+)= A [m, k] B [k, n], on the current stream. `type`: of A and B; C is of T.
template <class T>
void gemm(Operands type, int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, Rows<T> c, bool accumulate,
          Batch batch = {});

}  // namespace rnnext::cuda
