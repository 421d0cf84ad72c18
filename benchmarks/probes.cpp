// What the processor can do, measured on one thread: the floor that a layer's time is held against. Built and called by
// probes.py, for the instruction set in use.
#include <chrono>
#include <cstdint>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

template <class Work>
double best_seconds(double seconds, Work work) {
  using Clock = std::chrono::steady_clock;
  const auto elapsed = [](Clock::time_point since) {
    return std::chrono::duration<double>(Clock::now() - since).count();
  };
  double best = 1e9;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    work();
    const double taken = elapsed(start);
    best = taken < best ? taken : best;
  } while (elapsed(begin) < seconds);
  return best;
}

volatile float sink;  // so that what is measured has a result

// Chains of multiply-adds, each waiting for its last one: enough to fill two units for the cycles that one takes, and
// few enough for the registers (AVX2 has 16) and to be unrolled (g++ does up to 16), or they would live in memory. They
// begin differently, or the compiler would see that they are the same.
constexpr int kChains = 12, kBfloat16Chains = 16, kRepeats = 20000;

// The arrays stay in registers only as variables of a function of their own; the compiler must not see that its calls
// could be one.
#define RNNEXT_PROBE __attribute__((noinline))
#define RNNEXT_EACH_CALL asm volatile("" ::: "memory")

#if defined(__x86_64__)
__attribute__((noinline, target("avx512f,avx512bf16"))) float bfloat16_products(const uint16_t* pairs) {
  RNNEXT_EACH_CALL;
  __m512 sums[kBfloat16Chains];
  for (int k = 0; k < kBfloat16Chains; ++k) sums[k] = _mm512_set1_ps(static_cast<float>(k));
  const auto a = (__m512bh)_mm512_loadu_si512(pairs), b = (__m512bh)_mm512_loadu_si512(pairs + 32);
  for (int i = 0; i < kRepeats; ++i) {
    for (int k = 0; k < kBfloat16Chains; ++k) sums[k] = _mm512_dpbf16_ps(sums[k], a, b);
  }
  for (int k = 1; k < kBfloat16Chains; ++k) sums[0] = _mm512_add_ps(sums[0], sums[k]);
  return _mm512_cvtss_f32(sums[0]);
}

// Zero where the processor has no products of bfloat16.
double bfloat16_gflops(double seconds) {
  if (!__builtin_cpu_supports("avx512bf16")) return 0;
  const std::vector<uint16_t> pairs(64, 0x3f00);
  return 2.0 * 32 * kBfloat16Chains * kRepeats /
         best_seconds(seconds, [&] { sink = bfloat16_products(pairs.data()); }) / 1e9;
}
#else
double bfloat16_gflops(double) {
  return 0;
}
#endif

}  // namespace

#include RNNEXT_ISA_HEADER
#include "cpu/step.h"

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

namespace rnnext::RNNEXT_ISA {
namespace {

RNNEXT_PROBE float products() {
  RNNEXT_EACH_CALL;
  using V = Vec<float>;
  V sums[kChains];
  for (int k = 0; k < kChains; ++k) sums[k] = V(static_cast<float>(k));
  const V factor(0.999f), term(0.001f);
  for (int i = 0; i < kRepeats; ++i) {
    for (int k = 0; k < kChains; ++k) sums[k] = fma(sums[k], factor, term);
  }
  for (int k = 1; k < kChains; ++k) sums[0] = sums[0] + sums[k];
  return sum_of(sums[0]);
}

double float32_gflops(double seconds) {
  return 2.0 * Vec<float>::width * kChains * kRepeats / best_seconds(seconds, [] { sink = products(); }) / 1e9;
}

constexpr int64_t kReads = 8 * Vec<float>::width;

RNNEXT_PROBE float read(const float* data, int64_t count) {
  RNNEXT_EACH_CALL;
  using V = Vec<float>;
  V sums[8];
  for (int k = 0; k < 8; ++k) sums[k] = V(0.0f);
  for (int64_t i = 0; i < count; i += kReads) {
    for (int k = 0; k < 8; ++k) sums[k] = sums[k] + V::load(data + i + k * V::width);
  }
  for (int k = 1; k < 8; ++k) sums[0] = sums[0] + sums[k];
  return sum_of(sums[0]);
}

// Reads so many bytes again and again: from the smallest cache that holds them.
double read_gigabytes(int64_t bytes, double seconds) {
  constexpr int64_t line = 64;
  const int64_t count = (bytes / sizeof(float) + kReads - 1) / kReads * kReads;
  const std::vector<char> buffer(count * sizeof(float) + line, 0);
  const auto* data =
      reinterpret_cast<const float*>((reinterpret_cast<uintptr_t>(buffer.data()) + line - 1) / line * line);
  const int64_t times = 1 + (1 << 22) / bytes;  // some microseconds at least, for the clock's sake
  const double taken = best_seconds(seconds, [&] {
    for (int64_t i = 0; i < times; ++i) sink = read(data, count);
  });
  return times * count * sizeof(float) / taken / 1e9;
}

// One step of a cell's elementwise work on a tile that lies in L2, in nanoseconds a unit.
template <class C>
struct Pointwise {
  static constexpr int64_t rows = 8, H = 256;
  static constexpr CellShape s = C::shape;
  std::vector<float> memory = std::vector<float>(rows * H * 64, 0.1f);
  int64_t used = 0;
  int64_t offsets[kMaxValues];

  float* columns(int64_t count) {
    float* result = memory.data() + used;
    used += rows * count * H;
    return result;
  }

  double forward(double seconds, bool training) {
    StepForward<float> step{};
    step.rows = rows, step.begin = 0, step.end = H, step.sizes = sizes;
    step.x[0] = {columns(s.gates()), s.gates() * H};
    step.r[0] = {columns(s.recurrent_gates()), s.recurrent_gates() * H};
    step.bias[0] = columns(s.slots());
    step.y[0] = {columns(1), H};
    for (int k = 0; k < s.states.count; ++k) step.state[k] = {columns(1), H};
    if (training) step.record = record<float>();
    return nanoseconds(seconds, [&] { rnnext::RNNEXT_ISA::forward<float, C, 0>(step); });
  }

  double backward(double seconds) {
    StepBackward<float> step{};
    step.rows = rows, step.begin = 0, step.end = H, step.sizes = sizes;
    step.record = record<const float>();
    step.next[0] = {columns(1), H}, step.dy[0] = {columns(1), H};
    for (int k = 0; k < s.states.count; ++k) step.state[k] = {columns(1), H}, step.dstate[k] = {columns(1), H};
    step.gradients = {{columns(s.slots()), s.slots() * H}, offsets};
    return nanoseconds(seconds, [&] { rnnext::RNNEXT_ISA::backward<float, C, 0>(step); });
  }

 private:
  template <class Work>
  static double nanoseconds(double seconds, Work work) {
    constexpr int times = 10;
    const double taken = best_seconds(seconds, [&] {
      for (int i = 0; i < times; ++i) work();
    });
    return 1e9 * taken / (times * rows * H);
  }

  template <class T>
  Values<T> record() {
    const int64_t width = s.saved.count + s.states.count - 1;
    for (int k = 0; k < kMaxValues; ++k) offsets[k] = k * H;
    return {{columns(width), width * H}, offsets};
  }

  static constexpr int64_t sizes[kMaxSizes] = {H};
};

template <class C>
double pointwise(int pass, double seconds) {
  Pointwise<C> work;
  return pass == 2 ? work.backward(seconds) : work.forward(seconds, pass == 1);
}

}  // namespace
}  // namespace rnnext::RNNEXT_ISA

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT double peak_gflops(int bfloat16, double seconds) {
  return bfloat16 ? bfloat16_gflops(seconds) : rnnext::RNNEXT_ISA::float32_gflops(seconds);
}

EXPORT double read_gigabytes(int64_t bytes, double seconds) {
  return rnnext::RNNEXT_ISA::read_gigabytes(bytes, seconds);
}

// cell: 0 LSTM, 1 GRU, 2 RNN. pass: 0 inference, 1 training's forward, 2 backward.
EXPORT double pointwise_nanoseconds(int cell, int pass, double seconds) {
  using namespace rnnext::RNNEXT_ISA;
  return cell == 0   ? pointwise<LSTM>(pass, seconds)
         : cell == 1 ? pointwise<GRU>(pass, seconds)
                     : pointwise<RNNTanh>(pass, seconds);
}

#include "cpu/isa/end.h"
