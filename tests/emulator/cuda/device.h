// In place of csrc/cuda/device.h: the same functions, on a CPU.
#pragma once

#include "../emulator.h"

namespace rnnext::cuda {

using Stream = void*;

struct Chip {
  int multiprocessors = 0, shared = 0;
};

inline Chip chip() {
  const emulator::Chip& chip = emulator::machine().chip;
  return {chip.multiprocessors, chip.shared};
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared, bool together, Stream,
            const Parameters&... arguments) {
  emulator::run(grid, threads, shared, together, [&] { kernel(arguments...); });
}

template <class... Parameters>
void launch_each(void (*kernel)(Parameters...), int64_t count, Stream stream, const Parameters&... arguments) {
  constexpr int threads = 256;
  if (count > 0) {
    launch(kernel, dim3(static_cast<unsigned>((count + threads - 1) / threads)), threads, 0, false, stream,
           arguments...);
  }
}

template <class... Parameters>
int resident_blocks(void (*)(Parameters...), int, int shared) {
  return shared > chip().shared ? 0 : chip().multiprocessors;
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
  unsigned char* memory = emulator::self().block->shared.data();
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory) + 15) & ~uintptr_t{15});
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
