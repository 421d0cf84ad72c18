// How the slices of a group exchange the values of a step. Each has
//
//   begin()        by all threads, before the first values are published
//   buffer(b)      two buffers take turns; a block writes its own values into its own sight of them
//   post(count)    tells the others that `count` times this slice has published: the last time, in buffer (count - 1) % 2
//   await(count)   waits until all have
//   load(p)        reads values of all slices
//
// A block publishes step i + 1 over step i - 1 only after it has awaited step i from all others, and each of them posted that
// after all its threads had read step i - 1. What is posted, all others must await before they end.
#pragma once

#include "cuda/scalar.h"

#include "cuda/persistent.h"

namespace rnnext::gpu {

// Through memory, which the chip's second-level cache holds, with a flag for each slice.
class GridExchange {
 public:
  static constexpr bool has_kernels = true;
  // Tiles that are on their way at a time: each takes the time of a journey to the second-level cache.
  static constexpr int ahead(int columns) { return columns <= 3 ? 8 : 2; }

  RNNEXT_INLINE GridExchange(const cuda::PersistentScan& scan, uint32_t*)
      : tiling_(scan.tiling),
        buffers_(scan.exchange + blockIdx.y * 2 * tiling_.exchange_words()),
        flags_(scan.flags + blockIdx.y * tiling_.slices) {}

  RNNEXT_INLINE void begin() const {}

  RNNEXT_INLINE uint32_t* buffer(int b) const { return buffers_ + b * tiling_.exchange_words(); }

  RNNEXT_INLINE void post(unsigned count) const {
    __syncthreads();
    if (threadIdx.x == 0) store_release(flags_ + blockIdx.x, count);
  }

  RNNEXT_INLINE void await(unsigned count) const {
    for (int i = threadIdx.x; i < tiling_.slices; i += kPersistentThreads) {
      while (load_acquire(flags_ + i) < count) pause();
    }
    __syncthreads();
  }

  RNNEXT_INLINE static uint2 load(const uint2* p) { return load_shared_by_blocks(p); }

 private:
  const Tiling& tiling_;
  uint32_t* const buffers_;
  unsigned* const flags_;
};

// By the shared memory of a cluster. Each block has the buffers whole, and stores its part into those of the others, where a
// barrier for each buffer counts the bytes.
class ClusterExchange {
 public:
  static constexpr bool has_kernels = kHasClusters;
  static constexpr int ahead(int columns) { return columns <= 3 ? 2 : 1; }

  // `memory`: shared, of the same place in all blocks.
  RNNEXT_INLINE ClusterExchange(const cuda::PersistentScan& scan, uint32_t* memory)
      : tiling_(scan.tiling),
        barriers_(reinterpret_cast<Barrier*>(memory)),
        buffers_(memory + Tiling::kBarrierWords),
        part_words_(static_cast<int>(tiling_.part_words())) {}

  // Zeros are in all places that no one publishes.
  RNNEXT_INLINE void begin() const {
    for (int i = threadIdx.x; i < 2 * tiling_.exchange_words(); i += kPersistentThreads) buffers_[i] = 0;
    if (threadIdx.x == 0) {
      for (int b = 0; b < 2; ++b) {
        gpu::begin(barriers_ + b);
        expect(b);
      }
    }
    meet_cluster();
  }

  RNNEXT_INLINE uint32_t* buffer(int b) const { return buffers_ + b * tiling_.exchange_words(); }

  RNNEXT_INLINE void post(unsigned count) const {
    __syncthreads();
    const int b = (count - 1) % 2, stores = part_words_ / 4;
    uint4* const part = reinterpret_cast<uint4*>(buffer(b) + blockIdx.x * part_words_);
    for (int i = threadIdx.x; i < stores * (tiling_.slices - 1); i += kPersistentThreads) {
      const unsigned other = i / stores;
      store_to_block(other + (other >= blockIdx.x), part + i % stores, part[i % stores], barriers_ + b);
    }
  }

  RNNEXT_INLINE void await(unsigned count) const {
    if (tiling_.slices == 1) return;
    const int b = (count - 1) % 2;
    while (!has_ended(barriers_ + b, (count - 1) / 2 % 2)) pause();
    // For the next turn of this buffer. It can't end before the other threads have seen this one end: for that, the others
    // need what this block posts after its threads have met.
    if (threadIdx.x == 0) expect(b);
    __syncwarp();  // for the tensor cores, which a warp's lanes call together
  }

  RNNEXT_INLINE static uint2 load(const uint2* p) { return *p; }

 private:
  RNNEXT_INLINE void expect(int b) const {
    expect_bytes(barriers_ + b, static_cast<unsigned>(4 * part_words_ * (tiling_.slices - 1)));
  }

  const Tiling& tiling_;
  Barrier* const barriers_;
  uint32_t* const buffers_;
  const int part_words_;
};

}  // namespace rnnext::gpu
