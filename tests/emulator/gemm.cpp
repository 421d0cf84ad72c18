// In place of csrc/cuda/gemm.cpp: products by torch on the CPU; what was rounded is widened first.
#include "cuda/gemm.h"

#include "cuda/torch.h"

namespace rnnext::cuda {
namespace {

template <class T>
at::Tensor view(const void* data, at::ScalarType type, int64_t rows, int64_t columns, int64_t stride, bool transposed) {
  void* memory = const_cast<void*>(data);
  const at::Tensor lies = transposed ? at::from_blob(memory, {columns, rows}, {stride, 1}, type).t()
                                     : at::from_blob(memory, {rows, columns}, {stride, 1}, type);
  return lies.to(c10::CppTypeToScalarType<T>::value);
}

}  // namespace

template <class T>
void gemm(Operands type, int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, Rows<T> c, bool accumulate, Batch batch) {
  const bool rounds = std::is_same_v<T, float> && type != Operands::kAsGiven;
  const at::ScalarType given = !rounds                   ? c10::CppTypeToScalarType<T>::value
                               : type == Operands::kHalf ? at::kHalf
                                                         : at::kBFloat16;
  const int64_t bytes = c10::elementSize(given);
  for (int64_t i = 0; i < batch.count; ++i) {
    const at::Tensor x =
        view<T>(static_cast<const char*>(a.data) + i * batch.a * bytes, given, m, k, a.stride, a.transposed);
    const at::Tensor y =
        view<T>(static_cast<const char*>(b.data) + i * batch.b * bytes, given, k, n, b.stride, b.transposed);
    at::Tensor z = at::from_blob(c.data + i * batch.c, {m, n}, {c.stride, 1}, c10::CppTypeToScalarType<T>::value);
    accumulate ? z.add_(at::mm(x, y)) : z.copy_(at::mm(x, y));
  }
}

template void gemm<float>(Operands, int64_t, int64_t, int64_t, Matrix, Matrix, Rows<float>, bool, Batch);
template void gemm<double>(Operands, int64_t, int64_t, int64_t, Matrix, Matrix, Rows<double>, bool, Batch);

}  // namespace rnnext::cuda
