// Runs CUDA kernels on a CPU, to test them where there is no GPU. Each thread of a block is a fiber; fibers change places
// where threads meet (barriers, shuffles, matrix instructions) or wait for other blocks, in an order drawn from a seed, so
// that a kernel which counts on one order fails. What it can't show: speed, and writes that are seen late.
//
// x86-64, GCC or Clang.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

// Cells that are compiled to libraries of their own find the one machine.
#pragma GCC visibility push(default)

namespace emulator {

constexpr int kLanes = 32;
constexpr size_t kStack = 128 << 10;

struct Block;

struct Fiber {
  void* stack_pointer = nullptr;
  Block* block = nullptr;
  unsigned thread = 0;
  bool done = false, waiting = false;
};

// What the lanes of a warp lay down for each other.
struct Warp {
  int arrived = 0, live = 0;
  unsigned char slots[kLanes][64];
};

// Aligned to 16 bytes.
class SharedMemory {
 public:
  void assign(size_t bytes, unsigned char value) {
    words_.resize((bytes + sizeof(uint4) - 1) / sizeof(uint4) + 1);
    std::memset(words_.data(), value, words_.size() * sizeof(uint4));
  }
  unsigned char* data() { return reinterpret_cast<unsigned char*>(words_.data()); }

 private:
  std::vector<uint4> words_;
};

struct Block {
  dim3 index;
  Fiber* fibers = nullptr;
  unsigned threads = 0;
  SharedMemory shared;
  std::vector<Warp> warps;
  int arrived = 0, live = 0;
};

struct Chip {
  int number = 0;
  int multiprocessors = 6;
  int shared = 227 << 10;
  int cluster = 16;
  int running_cluster = 16;  // a device may run smaller ones than it has
};

// The running kernel.
struct Machine {
  Chip chip;
  uint64_t random = 1;
  dim3 grid, block;
  std::vector<Fiber> fibers;
  std::vector<Block> blocks;  // that run at the same time
  int arrived = 0, live = 0;  // their threads
  std::vector<std::function<void()>> later;
  std::function<void()> kernel;
  Fiber* current = nullptr;
  void* scheduler = nullptr;  // its stack pointer, while a fiber runs
  uint64_t idle = 0;          // turns in which threads only waited for other blocks
  std::string error;
  std::vector<unsigned char*> stacks;
};

Machine& machine();

// Runs all blocks, so many at a time.
void run(dim3 grid, int threads, int shared, unsigned at_once, std::function<void()> kernel);

void suspend();        // another fiber's turn
void block_barrier();  // __syncthreads
void warp_barrier();
void cluster_barrier();                  // of all blocks that run at the same time
void later(std::function<void()> work);  // is done between turns of threads, in any order
void wait_for_blocks();                  // suspend, where nothing was done; a wait that can't end is an error

inline Fiber& self() {
  return *machine().current;
}
inline Warp& warp() {
  return self().block->warps[self().thread / kLanes];
}
inline unsigned lane() {
  return self().thread % kLanes;
}

// Lays down a value, meets the warp, lets `read` look at the values of all lanes, and meets the warp again.
template <class T, class Read>
auto among_lanes(const T& mine, Read read) {
  static_assert(sizeof(T) <= sizeof(Warp::slots[0]));
  Warp& w = warp();
  std::memcpy(w.slots[lane()], &mine, sizeof(T));
  warp_barrier();
  const auto result = read([&w](unsigned lane) {
    T value;
    std::memcpy(&value, w.slots[lane], sizeof(T));
    return value;
  });
  warp_barrier();
  return result;
}

}  // namespace emulator

#pragma GCC visibility pop

#define threadIdx (dim3(emulator::self().thread))
#define blockIdx (emulator::self().block->index)
#define blockDim (emulator::machine().block)
#define gridDim (emulator::machine().grid)
inline void __syncthreads() {
  emulator::block_barrier();
}
inline void __syncwarp() {
  emulator::warp_barrier();
}
