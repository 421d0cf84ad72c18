// How blocks hand values to each other: the exchanges of a persistent recurrent kernel, without its arithmetic. `Check`
// compares every value that arrives; without it only those of the last step are compared.
//
// Every exchange has two buffers that take turns. A block writes step t + 2 over step t only after it has received
// step t + 1 from all others, and each of them sent that after all its threads had read step t.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "harness.cuh"

constexpr unsigned kThreads = 256;

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- Through L2: flags hold the number of the last step that is complete, and only grow.

__device__ inline void store_release(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

__device__ inline unsigned load_acquire(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// 16 bytes in one access, so that the tag in `w` cannot arrive without the data beside it.
__device__ inline void store_tagged(uint4* to, uint4 v) {
  asm volatile(
      "{ .reg .b128 q; .reg .b64 lo, hi; mov.b64 lo, {%1, %2}; mov.b64 hi, {%3, %4}; mov.b128 q, {lo, hi};"
      "  st.relaxed.gpu.global.b128 [%0], q; }" ::"l"(to),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
      : "memory");
}

__device__ inline uint4 load_tagged(const uint4* from) {
  uint4 v;
  asm volatile(
      "{ .reg .b128 q; .reg .b64 lo, hi; ld.relaxed.gpu.global.b128 q, [%4];"
      "  mov.b128 {lo, hi}, q; mov.b64 {%0, %1}, lo; mov.b64 {%2, %3}, hi; }"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from)
      : "memory");
  return v;
}

// From L2 to shared memory past the registers, as many at a time as there are; then all of this thread's are complete.
__device__ inline void copy_async(uint4* to, const uint4* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Every block has come as far as `value`, and what it wrote before is visible to all threads here. The block barriers
// carry the order from and to the threads that neither post nor poll.
__device__ inline void flag_barrier(unsigned* flags, unsigned stride, unsigned value, Watchdog& watchdog) {
  __syncthreads();
  if (threadIdx.x == 0) store_release(flags + blockIdx.x * stride, value);
  for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x) {
    while (load_acquire(flags + block * stride) < value) watchdog.check(value);
  }
  __syncthreads();
}

// `rounds` times: the server posts, the other side answers.
template <class Post, class Await>
__device__ void rally(bool server, unsigned rounds, Post post, Await await) {
  for (unsigned round = 1; round <= rounds; ++round) {
    if (server) post(round);
    await(round);
    if (!server) post(round);
  }
}

// How one block hands something to one other: a flag alone; 16 bytes and a flag; or 16 bytes that say themselves that they
// have arrived, by a tag among them or by an mbarrier that counts them.
enum class Hop { flag, data_and_flag, data };

// Blocks 0 and `partner` of a grid play; the others only see to it that these two sit on different multiprocessors.
// flags: 2 x 32 words, zero; data: 2 x 8 vectors, filled with 0xee.
template <Hop hop>
__global__ void hop_grid(unsigned* flags, uint4* data, unsigned partner, unsigned rounds) {
  if (threadIdx.x != 0 || (blockIdx.x != 0 && blockIdx.x != partner)) return;
  const unsigned me = blockIdx.x != 0, other = 1 - me;
  uint4 *my_data = data + me * 8, *its_data = data + other * 8;
  Watchdog watchdog;
  rally(
      me == 0, rounds,
      [&](unsigned round) {
        if (hop == Hop::data) {
          store_tagged(my_data, tagged(round, me));
        } else {
          if (hop == Hop::data_and_flag) *my_data = words(round, me);
          store_release(flags + me * 32, round);
        }
      },
      [&](unsigned round) {
        if (hop == Hop::data) {
          uint4 got = load_tagged(its_data);
          for (; got.w != round + 1; got = load_tagged(its_data)) watchdog.check(round);
          expect(round, tagged(round, other), got);
        } else {
          while (load_acquire(flags + other * 32) != round) watchdog.check(round);
          if (hop == Hop::data_and_flag) expect(round, words(round, other), __ldcg(its_data));
        }
      });
}

enum class Barrier { grid_sync, flags };

// flags: gridDim x stride words, zero; data: 2 x gridDim words.
template <Barrier kind, bool Check>
__global__ void __launch_bounds__(kThreads)
    barrier_grid(unsigned* flags, unsigned stride, unsigned* data, unsigned rounds) {
  Watchdog watchdog;
  for (unsigned t = 0; t < rounds; ++t) {
    unsigned* now = data + t % 2 * gridDim.x;
    if (Check && threadIdx.x == 0) now[blockIdx.x] = word(t, blockIdx.x);
    if (kind == Barrier::grid_sync) {
      cooperative_groups::this_grid().sync();
    } else {
      flag_barrier(flags, stride, t + 1, watchdog);
    }
    for (unsigned i = threadIdx.x; Check && i < gridDim.x; i += kThreads) expect(t, word(t, i), __ldcg(now + i));
  }
}

constexpr unsigned kGatherThreads = 512;

// Every block writes its slice of h and reads the whole of it into shared memory. With Tagged there are no flags: each 16
// bytes are read until their tag is right.
// h: 2 x gridDim x slice vectors, filled with 0xee; flags: gridDim words, zero. slice > 0, also where there is less data
// than blocks: what a block sends also tells the others that it has read the step before.
template <bool Tagged, bool Check>
__global__ void __launch_bounds__(kGatherThreads)
    gather_grid(uint4* h, unsigned* flags, unsigned slice, unsigned steps) {
  constexpr unsigned kBatch = 4;  // loads in flight in each thread; with more, the compiler waits between them
  extern __shared__ uint4 here[];
  const unsigned total = gridDim.x * slice, first = blockIdx.x * slice;
  Watchdog watchdog;
  for (unsigned t = 0; t < steps; ++t) {
    uint4* now = h + t % 2 * total;
    for (unsigned v = first + threadIdx.x; v < first + slice; v += kGatherThreads) {
      if (Tagged) {
        store_tagged(now + v, tagged(t, v));
      } else {
        now[v] = words(t, v);
      }
    }
    if (!Tagged) {
      flag_barrier(flags, 1, t + 1, watchdog);
      for (unsigned v = threadIdx.x; v < total; v += kGatherThreads) copy_async(here + v, now + v);
      copy_async_wait();
    }
    for (unsigned start = threadIdx.x; Tagged && start < total; start += kGatherThreads * kBatch) {
      for (bool complete = false; !complete;) {
        watchdog.check(t);
        uint4 values[kBatch];
        complete = true;
#pragma unroll
        for (unsigned k = 0; k < kBatch; ++k) {
          const unsigned v = start + k * kGatherThreads;
          if (v < total) values[k] = load_tagged(now + v);
        }
#pragma unroll
        for (unsigned k = 0; k < kBatch; ++k) {
          const unsigned v = start + k * kGatherThreads;
          if (v < total) here[v] = values[k];
          if (v < total) complete &= values[k].w == t + 1;
        }
      }
    }
    __syncthreads();  // h is complete for all threads; and nothing of the next step is sent before all have read this
    if (Check || t + 1 == steps) {
      for (unsigned v = threadIdx.x; v < total; v += kGatherThreads) {
        expect(t, Tagged ? tagged(t, v) : words(t, v), here[v]);
      }
      __syncthreads();  // before the next step overwrites `here`
    }
  }
}

// ---- Within a cluster, through distributed shared memory. Addresses are those of the shared state space. Below sm_90
// the kernels are empty, and the host launches none.

#if __CUDA_ARCH__ >= 900
__device__ inline unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ inline unsigned cluster_size() {
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// Where block `rank` of the cluster has what lies at `address` here.
__device__ inline uint32_t in_block(uint32_t address, unsigned rank) {
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

// Also the bounds of a block's life: shared memory of a block may be touched only after it has started and before it
// ends, so every exchange stands between two of these.
__device__ inline void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Where nothing was written that others are to see.
__device__ inline void cluster_barrier_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

__device__ inline void store_cluster(uint32_t to, unsigned value) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

__device__ inline void store_cluster(uint32_t to, uint4 v) {
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

__device__ inline void store_release_cluster(uint32_t flag, unsigned value) {
  asm volatile("st.release.cluster.shared::cluster.u32 [%0], %1;" ::"r"(flag), "r"(value) : "memory");
}

__device__ inline unsigned load_acquire_cluster(uint32_t flag) {
  unsigned value;
  asm volatile("ld.acquire.cluster.shared::cta.u32 %0, [%1];" : "=r"(value) : "r"(flag) : "memory");
  return value;
}

// One arrival, and as many bytes as it announces, complete a phase. The whole cluster sees the barrier after the next
// cluster_barrier().
__device__ inline void mbarrier_init(uint32_t barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void mbarrier_arrive_expect(uint32_t barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ inline bool mbarrier_try_wait(uint32_t barrier, unsigned parity) {
  unsigned done;
  asm volatile(
      "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done;
}

// Both count their bytes on a barrier that is in the block they write to.
__device__ inline void store_async(uint32_t to, uint4 v, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
      : "memory");
}

__device__ inline void copy_bulk(uint32_t to, uint32_t from, unsigned bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "r"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
#endif

// Blocks 0 and `partner` of a cluster play; the others wait for them.
template <Hop hop>
__global__ void hop_cluster(unsigned partner, unsigned rounds) {
#if __CUDA_ARCH__ >= 900
  __shared__ unsigned flag;
  __shared__ uint4 data;
  __shared__ uint64_t barrier;
  const unsigned me = cluster_rank(), other = me == 0 ? partner : 0;
  const uint32_t my_flag = shared_address(&flag), my_barrier = shared_address(&barrier);
  if (threadIdx.x == 0) {
    flag = 0;
    mbarrier_init(my_barrier);
  }
  cluster_barrier();
  if (threadIdx.x == 0 && (me == 0 || me == partner)) {
    const uint32_t its_data = in_block(shared_address(&data), other);
    const uint32_t its_flag = in_block(my_flag, other), its_barrier = in_block(my_barrier, other);
    Watchdog watchdog;
    rally(
        me == 0, rounds,
        [&](unsigned round) {
          if (hop == Hop::data) {
            store_async(its_data, words(round, me), its_barrier);
          } else {
            if (hop == Hop::data_and_flag) store_cluster(its_data, words(round, me));
            store_release_cluster(its_flag, round);
          }
        },
        [&](unsigned round) {
          if (hop == Hop::data) {
            mbarrier_arrive_expect(my_barrier, sizeof(data));
            while (!mbarrier_try_wait(my_barrier, (round - 1) % 2)) watchdog.check(round);
          } else {
            while (load_acquire_cluster(my_flag) != round) watchdog.check(round);
          }
          if (hop != Hop::flag) expect(round, words(round, other), data);
        });
  }
  __syncwarp();
  cluster_barrier();
#endif
}

// With Check, each block writes to the next one before each barrier and reads what it was given after it.
template <bool Ordered, bool Check>
__global__ void __launch_bounds__(kThreads) barrier_cluster(unsigned rounds) {
#if __CUDA_ARCH__ >= 900
  __shared__ volatile unsigned given[2];
  const unsigned rank = cluster_rank(), size = cluster_size();
  const unsigned next = (rank + 1) % size, previous = (rank + size - 1) % size;
  cluster_barrier();
  for (unsigned t = 0; t < rounds; ++t) {
    const uint32_t slot = shared_address(const_cast<unsigned*>(&given[t % 2]));
    if (Check && threadIdx.x == 0) store_cluster(in_block(slot, next), word(t, rank));
    Ordered ? cluster_barrier() : cluster_barrier_relaxed();
    if (Check) expect(t, word(t, previous), given[t % 2]);
  }
  cluster_barrier();
#endif
}

enum class Via { st_async, bulk };

// Every block sends its slice of h to all others, and waits until their slices are here: by 16-byte stores from registers,
// or by one bulk copy for each of the others. The cluster's size is a power of two. Dynamic shared memory: 2 x size x slice
// vectors.
template <Via via, bool Check>
__global__ void __launch_bounds__(kThreads) gather_cluster(unsigned slice, unsigned steps) {
#if __CUDA_ARCH__ >= 900
  constexpr unsigned kBatch = 4;
  extern __shared__ uint4 h[];
  __shared__ uint64_t barriers[2];
  const unsigned rank = cluster_rank(), size = cluster_size(), total = size * slice, first = rank * slice;
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    mbarrier_init(shared_address(&barriers[0]));
    mbarrier_init(shared_address(&barriers[1]));
  }
  cluster_barrier();  // nothing is sent to a barrier that is not there yet
  Watchdog watchdog;
  for (unsigned t = 0; t < steps; ++t) {
    uint4* now = h + t % 2 * total;
    const uint32_t barrier = shared_address(&barriers[t % 2]);
    // A pointwise stage leaves its results in the block's own slice, where the products of the next step want them.
    for (unsigned v = first + threadIdx.x; v < first + slice; v += kThreads) now[v] = words(t, v);
    if (via == Via::bulk) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();  // the slice is complete; and all threads have read step t - 1
    // Bytes may arrive before they are announced: the phase cannot end without this arrival.
    if (threadIdx.x == 0) mbarrier_arrive_expect(barrier, (total - slice) * sizeof(uint4));
    for (unsigned i = warp; i < size - 1; i += kThreads / 32) {
      const unsigned peer = (rank + 1 + i) & (size - 1);  // each block starts with another one
      const uint32_t to = in_block(shared_address(now + first), peer), its_barrier = in_block(barrier, peer);
      if (via == Via::bulk) {
        if (lane == 0) copy_bulk(to, shared_address(now + first), slice * sizeof(uint4), its_barrier);
      } else {
        for (unsigned start = lane; start < slice; start += 32 * kBatch) {
          uint4 values[kBatch];
#pragma unroll
          for (unsigned k = 0; k < kBatch; ++k) {
            if (start + 32 * k < slice) values[k] = now[first + start + 32 * k];
          }
#pragma unroll
          for (unsigned k = 0; k < kBatch; ++k) {
            const unsigned v = start + 32 * k;
            if (v < slice) store_async(to + v * sizeof(uint4), values[k], its_barrier);
          }
        }
      }
    }
    while (!mbarrier_try_wait(barrier, t / 2 % 2)) watchdog.check(t);
    if (Check || t + 1 == steps) {
      for (unsigned v = threadIdx.x; v < total; v += kThreads) expect(t, words(t, v), now[v]);
    }
  }
  cluster_barrier();
#endif
}
