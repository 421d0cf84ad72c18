// Random numbers from a counter-based generator: what a value is depends on the seed and on its place alone.
#pragma once

#include "cpu/simd.h"

#include "cells/math.h"
#include "engine/cell.h"

namespace rnnext::RNNEXT_ISA {

typedef uint64_t Words __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));  // each holds a 32-bit word
constexpr int kWordLanes = sizeof(Words) / sizeof(uint64_t);
constexpr int kWordsAtOnce = 4 * kWordLanes;

// Philox4x32-10 (Salmon et al. 2011). Element i takes word i % 4 of counter (i / 4, stream, number); key: the seed.
// Fills words[0 .. kWordsAtOnce) for the elements from `first`, a multiple of 4.
RNNEXT_INLINE void philox(int64_t first, uint64_t seed, uint32_t stream, uint32_t number, uint32_t* words) {
  constexpr uint64_t low = 0xffffffff;
  Words counter;
  for (int j = 0; j < kWordLanes; ++j) counter[j] = static_cast<uint64_t>(first) / 4 + j;
  Words word[4] = {counter & low, counter >> 32, Words{} + stream, Words{} + number};
  uint64_t key0 = seed & low, key1 = seed >> 32;
  for (int round = 0; round < 10; ++round) {
    const Words a = word[0] * 0xD2511F53ull;
    const Words b = word[2] * 0xCD9E8D57ull;
    word[0] = (b >> 32) ^ word[1] ^ key0;
    word[2] = (a >> 32) ^ word[3] ^ key1;
    word[1] = b & low;
    word[3] = a & low;
    key0 = (key0 + 0x9E3779B9u) & low;
    key1 = (key1 + 0xBB67AE85u) & low;
  }
  for (int j = 0; j < kWordLanes; ++j) {
    for (int k = 0; k < 4; ++k) words[4 * j + k] = static_cast<uint32_t>(word[k][j]);
  }
}

// A word is below it with probability p.
RNNEXT_INLINE uint32_t threshold(double p) {
  return static_cast<uint32_t>(p * 4294967296.0 < 4294967295.0 ? p * 4294967296.0 : 4294967295.0);
}

template <class T>
RNNEXT_INLINE T dropout_scale(double p) {
  return p < 1 ? static_cast<T>(1 / (1 - p)) : T(0);
}

// Dropout of the outputs of a layer, of elements first .. first + count; number 0 is its own.
template <class T>
void dropout(int64_t first, int64_t count, const T* src, T* dst, uint64_t seed, uint32_t layer, double p) {
  const uint32_t limit = threshold(p);
  const T scale = dropout_scale<T>(p);
  const int64_t end = first + count;
  for (int64_t base = first / 4 * 4; base < end; base += kWordsAtOnce) {
    uint32_t words[kWordsAtOnce];
    philox(base, seed, layer, 0, words);
    const int64_t from = base < first ? first - base : 0;
    const int64_t to = end - base < kWordsAtOnce ? end - base : kWordsAtOnce;
    for (int64_t i = from; i < to; ++i) {
      const int64_t at = base + i - first;
      dst[at] = words[i] >= limit ? src[at] * scale : T(0);
    }
  }
}

// Box and Muller 1958: the words of an even place and the odd one after it make two values.
template <class T>
RNNEXT_INLINE void normal(const uint32_t* words, double mean, double deviation, T* values) {
  using V = Vec<T>;
  constexpr int pairs = kWordsAtOnce / 2;
  constexpr int padded = (pairs + V::width - 1) / V::width * V::width;
  T u1[padded] = {}, u2[padded] = {};
  for (int i = 0; i < pairs; ++i) {
    u1[i] = static_cast<T>((words[2 * i] >> 8) + 1) * T(0x1p-24);
    u2[i] = static_cast<T>(words[2 * i + 1] >> 8) * T(0x1p-24);
  }
  for (int i = 0; i < padded; i += V::width) {
    const V radius = sqrt(V(T(-2)) * log(V::load(u1 + i))) * V(T(deviation));
    const V angle = V::load(u2 + i) * V(T(6.283185307179586));
    (radius * cos(angle) + V(T(mean))).store(u1 + i);
    (radius * sin(angle) + V(T(mean))).store(u2 + i);
  }
  for (int i = 0; i < pairs; ++i) {
    values[2 * i] = u1[i];
    values[2 * i + 1] = u2[i];
  }
}

// Elements first .. first + count of one noise of a cell.
template <class T>
void noise(const Noise& kind, int64_t first, int64_t count, T* dst, uint64_t seed, uint32_t scan, uint32_t number) {
  const uint32_t limit = threshold(kind.a);
  const T scale = dropout_scale<T>(kind.a);
  const int64_t end = first + count;
  for (int64_t base = first / 4 * 4; base < end; base += kWordsAtOnce) {
    uint32_t words[kWordsAtOnce];
    T values[kWordsAtOnce];
    philox(base, seed, scan, 1 + number, words);
    switch (kind.kind) {
      case Noise::kDropout:
        for (int i = 0; i < kWordsAtOnce; ++i) values[i] = words[i] >= limit ? scale : T(0);
        break;
      case Noise::kBernoulli:
        for (int i = 0; i < kWordsAtOnce; ++i) values[i] = words[i] < limit ? T(1) : T(0);
        break;
      case Noise::kNormal:
        normal(words, kind.a, kind.b, values);
        break;
      default:
        for (int i = 0; i < kWordsAtOnce; ++i) {
          values[i] = T(kind.a) + T(kind.b - kind.a) * (static_cast<T>(words[i] >> 8) * T(0x1p-24));
        }
    }
    const int64_t from = base < first ? first - base : 0;
    const int64_t to = end - base < kWordsAtOnce ? end - base : kWordsAtOnce;
    for (int64_t i = from; i < to; ++i) dst[base + i - first] = values[i];
  }
}

}  // namespace rnnext::RNNEXT_ISA
