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
  int device = 0;
  int multiprocessors = 0;
  int shared = 0;   // bytes of shared memory that a block can have
  int cluster = 0;  // blocks that a cluster can have; 0 where there are none
};

inline Chip chip() {
  Chip result;
  check(cudaGetDevice(&result.device), "cudaGetDevice");
  const auto get = [&](int* value, cudaDeviceAttr attribute) {
    check(cudaDeviceGetAttribute(value, attribute, result.device), "cudaDeviceGetAttribute");
  };
  int clusters = 0;
  get(&result.multiprocessors, cudaDevAttrMultiProcessorCount);
  get(&result.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  get(&clusters, cudaDevAttrClusterLaunch);
  // More than 8 a kernel must ask for, and not every device has; see can_run.
  if (clusters) result.cluster = 16;
  return result;
}

// How the blocks of a grid run: as they come; all at the same time, so that they may wait for each other; or each row of
// the grid at the same time, as one cluster, whose blocks reach each other's shared memory.
enum class Together { kNone, kAll, kRows };

struct Grid {
  dim3 blocks;
  int threads;
  int shared = 0;  // bytes of shared memory of each block
  Together together = Together::kNone;
};

// What a launch of a kernel is called with.
template <class Kernel>
class LaunchConfig {
 public:
  LaunchConfig(Kernel kernel, const Grid& grid, Stream stream) {
    if (grid.shared > 48 << 10) set(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared);
    config_.gridDim = grid.blocks;
    config_.blockDim = dim3(grid.threads);
    config_.dynamicSmemBytes = grid.shared;
    config_.stream = stream;
    if (grid.together == Together::kNone) return;
    if (grid.together == Together::kAll) {
      attribute_.id = cudaLaunchAttributeCooperative;
      attribute_.val.cooperative = 1;
    } else {
      if (grid.blocks.x > 8) set(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
      attribute_.id = cudaLaunchAttributeClusterDimension;
      attribute_.val.clusterDim = {grid.blocks.x, 1, 1};
    }
    config_.attrs = &attribute_;
    config_.numAttrs = 1;
  }
  LaunchConfig(const LaunchConfig&) = delete;

  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  static void set(Kernel kernel, cudaFuncAttribute attribute, int value) {
    check(cudaFuncSetAttribute(kernel, attribute, value), "cudaFuncSetAttribute");
  }

  cudaLaunchConfig_t config_{};
  cudaLaunchAttribute attribute_{};
};

// Fails where the blocks can't run together as is asked.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), const Grid& grid, Stream stream, const Parameters&... arguments) {
  const LaunchConfig config(kernel, grid, stream);
  check(cudaLaunchKernelEx(config.get(), kernel, arguments...), "launching a kernel");
}

// Whether the blocks that must run together fit on the device.
template <class... Parameters>
bool can_run(void (*kernel)(Parameters...), const Grid& grid) {
  const LaunchConfig config(kernel, grid, nullptr);
  int fit = 0;
  if (grid.together == Together::kRows) {
    // A size of clusters that the device has not is an error, which is no error here.
    const cudaError_t status = cudaOccupancyMaxActiveClusters(&fit, kernel, config.get());
    if (status != cudaSuccess) cudaGetLastError();
    return status == cudaSuccess && fit > 0;
  }
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, kernel, grid.threads, grid.shared),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  const int64_t blocks = int64_t{grid.blocks.x} * grid.blocks.y * grid.blocks.z;
  return grid.together == Together::kNone || blocks <= int64_t{fit} * chip().multiprocessors;
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

// Clusters: blocks that reach each other's shared memory, from compute capability 9.0 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kHasClusters = false;
#else
inline constexpr bool kHasClusters = true;
#endif

// All threads of the cluster meet: what they wrote before to shared memory is seen after it.
__device__ __forceinline__ void meet_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

// A barrier in shared memory, which counts bytes that other blocks store (PTX: mbarrier). In each of its phases one thread
// says how many are expected, before or after they come. The phases have parity 0, 1, 0, ...
using Barrier = uint64_t;

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
// By one thread, which then meets the cluster.
__device__ __forceinline__ void begin(Barrier* barrier) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], 1;\n"
      "fence.mbarrier_init.release.cluster;" ::"r"(shared_address(barrier))
      : "memory");
}
__device__ __forceinline__ void expect_bytes(Barrier* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Whether the phase of this parity has ended; then the bytes are there. May wait a while to find out.
__device__ __forceinline__ bool has_ended(Barrier* barrier, unsigned parity) {
  unsigned ended;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return ended;
}
// Stores to block `rank` of the cluster, at the place that `place` has in this one, and counts there at `barrier`. What this
// thread read and wrote before, and its block before a barrier, is done when the bytes are counted.
__device__ __forceinline__ void store_to_block(unsigned rank, void* place, uint4 value, Barrier* barrier) {
  unsigned there, counted;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(place)), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counted) : "r"(shared_address(barrier)), "r"(rank));
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(counted)
      : "memory");
}

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
