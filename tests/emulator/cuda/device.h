// In place of csrc/cuda/device.h: the same functions, on a CPU.
#pragma once

#include "../emulator.h"

namespace rnnext::cuda {

using Stream = void*;

struct Chip {
  int device = 0, multiprocessors = 0, shared = 0, cluster = 0;
};

inline Chip chip() {
  const emulator::Chip& chip = emulator::machine().chip;
  return {chip.number, chip.multiprocessors, chip.shared, chip.cluster};
}

enum class Together { kNone, kAll, kRows };

struct Grid {
  dim3 blocks;
  int threads;
  int shared = 0;
  Together together = Together::kNone;

  unsigned at_once() const {
    if (together == Together::kRows) return blocks.x;
    return together == Together::kAll ? blocks.x * blocks.y * blocks.z : 1;
  }
};

template <class... Parameters>
void launch(void (*kernel)(Parameters...), const Grid& grid, Stream, const Parameters&... arguments) {
  emulator::run(grid.blocks, grid.threads, grid.shared, grid.at_once(), [&] { kernel(arguments...); });
}

template <class... Parameters>
bool can_run(void (*)(Parameters...), const Grid& grid) {
  const unsigned most =
      grid.together == Together::kRows ? emulator::machine().chip.running_cluster : chip().multiprocessors;
  return grid.shared <= chip().shared && grid.at_once() <= most;
}

inline void clear(void* memory, size_t bytes, Stream) {
  std::memset(memory, 0, bytes);
}

inline void copy(void* to, const void* from, size_t bytes, Stream) {
  std::memcpy(to, from, bytes);
}

}  // namespace rnnext::cuda

namespace rnnext::gpu {

inline int64_t global_thread() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}

inline char* shared_memory() {
  return reinterpret_cast<char*>(emulator::self().block->shared.data());
}

template <class T>
T shuffle_xor(T value, int mask) {
  return emulator::among_lanes(value, [&](auto value_of) { return value_of(emulator::lane() ^ mask); });
}

inline uint32_t rounded(float x, int bits) {
  const uint32_t b = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return b | 0x400000;
  return b + ((1u << (bits - 1)) - 1) + ((b >> bits) & 1);
}
inline uint16_t bfloat16_bits(float x) {
  return static_cast<uint16_t>(rounded(x, 16) >> 16);
}
inline uint16_t half_bits(float x) {
  return std::bit_cast<uint16_t>(static_cast<_Float16>(x));
}
inline uint32_t tf32_bits(float x) {
  // Ties go away from zero.
  const uint32_t b = std::bit_cast<uint32_t>(x);
  return std::isfinite(x) ? (b + 0x1000) & ~0x1fffu : b;
}

inline void store_release(unsigned* flag, unsigned value) {
  *flag = value;
}
inline unsigned load_acquire(const unsigned* flag) {
  return *flag;
}
inline uint2 load_shared_by_blocks(const uint2* p) {
  return *p;
}
inline void pause() {
  emulator::wait_for_blocks();
}
inline void prefetch(const void*) {}

inline constexpr bool kHasClusters = true;

inline void meet_cluster() {
  emulator::cluster_barrier();
}

struct Barrier {
  int32_t bytes;  // that are still to come; below zero where they came before they were expected
  uint16_t waits_for_thread, ended;
};
static_assert(sizeof(Barrier) == 8);

inline void end_if_complete(Barrier* barrier) {
  if (barrier->waits_for_thread || barrier->bytes) return;
  ++barrier->ended;
  barrier->waits_for_thread = 1;
}
inline void begin(Barrier* barrier) {
  *barrier = {0, 1, 0};
}
inline void expect_bytes(Barrier* barrier, unsigned bytes) {
  if (!barrier->waits_for_thread) throw std::runtime_error("bytes are expected twice in a phase of a barrier");
  barrier->waits_for_thread = 0;
  barrier->bytes += static_cast<int32_t>(bytes);
  end_if_complete(barrier);
}
inline bool has_ended(Barrier* barrier, unsigned parity) {
  return barrier->ended % 2 != parity;
}
// It arrives some time later.
inline void store_to_block(unsigned rank, void* place, uint4 value, Barrier* barrier) {
  emulator::Block& mine = *emulator::self().block;
  emulator::Block& block = emulator::machine().blocks[rank];
  const auto there = [&](void* here) {
    return block.shared.data() + (static_cast<unsigned char*>(here) - mine.shared.data());
  };
  void* const to = there(place);
  Barrier* const counted = reinterpret_cast<Barrier*>(there(barrier));
  emulator::later([=, &block] {
    if (block.live == 0) throw std::runtime_error("emulator: a block ended before what was stored to it came");
    std::memcpy(to, &value, sizeof(value));
    counted->bytes -= sizeof(value);
    end_if_complete(counted);
  });
}

// Operands of `e` values in a register, each widened by `value_of(register, which)`.
template <int e, class ValueOf>
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], ValueOf value_of) {
  struct Registers {
    uint32_t a[4], b[2];
  } mine;
  std::copy_n(a, 4, mine.a);
  std::copy_n(b, 2, mine.b);
  struct Sums {
    float d[4];
  };
  const unsigned g = emulator::lane() / 4, t = emulator::lane() % 4;
  const Sums sums = emulator::among_lanes(mine, [&](auto registers_of) {
    Sums s;
    for (int i = 0; i < 4; ++i) {
      const unsigned row_half = i / 2, column = 2 * t + i % 2;
      double sum = 0;
      for (int k = 0; k < 8 * e; ++k) {
        const unsigned lane = k % (4 * e) / e, half = k / (4 * e);
        sum += double{value_of(registers_of(4 * g + lane).a[2 * half + row_half], k % e)} *
               value_of(registers_of(4 * column + lane).b[half], k % e);
      }
      s.d[i] = static_cast<float>(sum);
    }
    return s;
  });
  for (int i = 0; i < 4; ++i) d[i] += sums.d[i];
}

inline void multiply_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply<2>(d, a, b, [](uint32_t r, int i) { return std::bit_cast<float>(i ? r & 0xffff0000u : r << 16); });
}
inline void multiply_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply<2>(d, a, b, [](uint32_t r, int i) {
    return static_cast<float>(std::bit_cast<_Float16>(static_cast<uint16_t>(i ? r >> 16 : r)));
  });
}
inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply<1>(d, a, b, [](uint32_t r, int) { return std::bit_cast<float>(r & ~0x1fffu); });
}

}  // namespace rnnext::gpu
