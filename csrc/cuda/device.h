// The GPU as the rest of this folder sees it: streams, launches, and the few instructions beyond plain C++. Nothing else
// here names CUDA's runtime; tests/emulator has a header of the same name that runs all of it on a CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace rnnext::cuda {

using Stream = cudaStream_t;

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("rnnext: ") + what + " failed: " + cudaGetErrorString(status));
  }
}

// Of the current device.
struct Chip {
  int multiprocessors = 0;
  int shared = 0;  // bytes of shared memory that a block can have
};

inline Chip chip() {
  int device = 0;
  Chip result;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&result.multiprocessors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&result.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  return result;
}

// A kernel over a grid of blocks, with `shared` bytes of shared memory each. Together: all blocks run at the same time, or
// the launch fails; they may wait for each other.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared, bool together, Stream stream,
            const Parameters&... arguments) {
  if (shared > 48 << 10) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "cudaFuncSetAttribute");
  }
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = together;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launching a kernel");
}

// A thread for each of `count` items; none where there are none.
template <class... Parameters>
void launch_each(void (*kernel)(Parameters...), int64_t count, Stream stream, const Parameters&... arguments) {
  constexpr int threads = 256;
  if (count > 0) {
    launch(kernel, dim3(static_cast<unsigned>((count + threads - 1) / threads)), threads, 0, false, stream,
           arguments...);
  }
}

// Blocks of a kernel that fit on the device at the same time.
template <class... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int threads, int shared) {
  int blocks = 0;
  if (shared > 48 << 10) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "cudaFuncSetAttribute");
  }
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  return blocks * chip().multiprocessors;
}

inline void clear(void* memory, size_t bytes, Stream stream) {
  check(cudaMemsetAsync(memory, 0, bytes, stream), "cudaMemsetAsync");
}

inline void copy(void* to, const void* from, size_t bytes, Stream stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
}

}  // namespace rnnext::cuda

#ifdef __CUDACC__  // in device code

namespace rnnext::gpu {

__device__ __forceinline__ int64_t global_thread() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}

// The block's shared memory, aligned to 16 bytes.
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ uint4 memory[];
  return reinterpret_cast<char*>(memory);
}

// Of lane `lane ^ mask` in the warp; all lanes call it.
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Rounded to the nearest, as the bits of the narrower format; tf32 is a float with 13 zeros at its end.
__device__ __forceinline__ uint16_t bfloat16_bits(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__device__ __forceinline__ uint16_t half_bits(float x) {
  return __half_as_ushort(__float2half_rn(x));
}
__device__ __forceinline__ uint32_t tf32_bits(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// Flags between blocks: what a thread wrote, or its block before a barrier, is seen by who reads the flag's new value, and
// by its block after a barrier. Data that other blocks wrote is read past the first-level cache.
__device__ __forceinline__ void store_release(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ __forceinline__ unsigned load_acquire(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ __forceinline__ uint2 load_shared_by_blocks(const uint2* p) {
  return __ldcg(p);
}

// Called in a loop that waits for other blocks.
__device__ __forceinline__ void pause() {}

// D += A B for tiles in registers, of a warp together. With e = 2 (16-bit operands) or 1 (tf32) values in a register, lane
// l = 4 g + t holds of A [16, 8 e], in register r, row g + 8 (r % 2) and columns e t + 4 e (r / 2) and, for e = 2, the next;
// of B [8 e, 8], in register r, rows e t + 4 e r (and the next) of column g; of D [16, 8], rows g, g, g + 8, g + 8 and columns
// 2 t, 2 t + 1, 2 t, 2 t + 1.
__device__ __forceinline__ void multiply_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void multiply_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Asks for the line of memory at p, to be there when it is read.
__device__ __forceinline__ void prefetch(const void* p) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(p));
}

}  // namespace rnnext::gpu

#endif
