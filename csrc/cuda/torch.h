// What of torch depends on the device: its streams, its memory, which device is current.
#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/device.h"

// The dispatch key of the ops.
#define RNNEXT_CUDA_KEY CUDA

namespace rnnext::cuda {

inline Stream current_stream() {
  return c10::cuda::getCurrentCUDAStream();
}

// Makes the tensor's device the current one.
struct DeviceGuard {
  explicit DeviceGuard(const at::Tensor& x) : guard(x.device()) {}
  c10::cuda::CUDAGuard guard;
};

// Uninitialised memory on the current device, from torch's allocator.
inline at::Tensor allocate(int64_t bytes) {
  return at::empty({bytes}, at::TensorOptions(at::kByte).device(at::kCUDA, c10::cuda::current_device()));
}

// Whether torch's user lets products of float32 use TF32: torch.backends.cuda.matmul, torch.set_float32_matmul_precision.
inline bool allows_tf32() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

}  // namespace rnnext::cuda
