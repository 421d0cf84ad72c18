// In place of csrc/cuda/torch.h: tensors on the CPU. The ops take the place of the CPU's own.
#pragma once

#include <ATen/ATen.h>

#include "cuda/device.h"

#define RNNEXT_CUDA_KEY CPU

namespace rnnext::cuda {

inline Stream current_stream() {
  return nullptr;
}

struct DeviceGuard {
  explicit DeviceGuard(const at::Tensor&) {}
};

// Filled with NaN: what a kernel does not write must not be read.
inline at::Tensor allocate(int64_t bytes) {
  return at::full({bytes}, 0xff, at::kByte);
}

inline bool allows_tf32() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

}  // namespace rnnext::cuda
