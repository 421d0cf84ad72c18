#include "cuda/gemm.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <cublas_v2.h>

#include "cuda/elementwise.h"
#include "cuda/torch.h"

namespace rnnext::cuda {
namespace {

void check(cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw std::runtime_error(std::string("rnnext: a product by cuBLAS failed: ") + cublasGetStatusString(status));
  }
}

struct Call {
  cublasHandle_t handle;
  cublasOperation_t of_a, of_b;
  int64_t m, n, k;
  Matrix a, b;
  Batch batch;
};

// In float32 the handle says whether TF32 is allowed; in the narrower formats sums are float32 in any case.
void multiply(const Call& p, Rows<float> c, float beta) {
  const float one = 1.0f;
  check(cublasSgemmStridedBatched_64(p.handle, p.of_a, p.of_b, p.m, p.n, p.k, &one, static_cast<const float*>(p.a.data),
                                     p.a.stride, p.batch.a, static_cast<const float*>(p.b.data), p.b.stride, p.batch.b,
                                     &beta, c.data, c.stride, p.batch.c, p.batch.count));
}

void multiply(const Call& p, Rows<double> c, double beta) {
  const double one = 1.0;
  check(cublasDgemmStridedBatched_64(
      p.handle, p.of_a, p.of_b, p.m, p.n, p.k, &one, static_cast<const double*>(p.a.data), p.a.stride, p.batch.a,
      static_cast<const double*>(p.b.data), p.b.stride, p.batch.b, &beta, c.data, c.stride, p.batch.c, p.batch.count));
}

void multiply_rounded(const Call& p, cudaDataType_t type, Rows<float> c, float beta) {
  const float one = 1.0f;
  check(cublasGemmStridedBatchedEx_64(p.handle, p.of_a, p.of_b, p.m, p.n, p.k, &one, p.a.data, type, p.a.stride,
                                      p.batch.a, p.b.data, type, p.b.stride, p.batch.b, &beta, c.data, CUDA_R_32F,
                                      c.stride, p.batch.c, p.batch.count, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

}  // namespace

template <class T>
void gemm(Operands type, int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, Rows<T> c, bool accumulate, Batch batch) {
  if (m == 0 || n == 0 || batch.count == 0) return;
  if (k == 0) {
    for (int64_t i = 0; !accumulate && i < batch.count; ++i) {
      clear_rows<T>(m, n, {c.data + i * batch.c, c.stride}, current_stream());
    }
    return;
  }
  // cuBLAS has matrices in column-major order: there, what is row-major is transposed, and C^T = B^T A^T.
  const auto operation = [](const Matrix& x) { return x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  const Call call{at::cuda::getCurrentCUDABlasHandle(),    operation(b), operation(a), n, m, k, b, a,
                  {batch.count, batch.b, batch.a, batch.c}};
  const T beta = accumulate ? T(1) : T(0);
  if constexpr (std::is_same_v<T, float>) {
    if (type == Operands::kHalf) return multiply_rounded(call, CUDA_R_16F, c, beta);
    if (type == Operands::kBFloat16) return multiply_rounded(call, CUDA_R_16BF, c, beta);
  }
  multiply(call, c, beta);
}

template void gemm<float>(Operands, int64_t, int64_t, int64_t, Matrix, Matrix, Rows<float>, bool, Batch);
template void gemm<double>(Operands, int64_t, int64_t, int64_t, Matrix, Matrix, Rows<double>, bool, Batch);

}  // namespace rnnext::cuda
