// The counter-based generator of cpu/random.h, one element at a time: the same numbers from the same seed.
#pragma once

#include "cuda/scalar.h"

#include "cells/math.h"
#include "engine/cell.h"

namespace rnnext::gpu {

struct Words {
  uint32_t w0, w1, w2, w3;

  // Not an array: with an index that is not constant it would lie in memory.
  RNNEXT_INLINE uint32_t operator[](int i) const {
    const uint32_t low = i % 2 ? w1 : w0, high = i % 2 ? w3 : w2;
    return i < 2 ? low : high;
  }
};

// Philox4x32-10 (Salmon et al. 2011): the words of elements 4 * group .. 4 * group + 3.
RNNEXT_INLINE Words philox(int64_t group, uint64_t seed, uint32_t stream, uint32_t number) {
  uint32_t w0 = static_cast<uint32_t>(group), w1 = static_cast<uint32_t>(static_cast<uint64_t>(group) >> 32);
  uint32_t w2 = stream, w3 = number;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * w0, b = uint64_t{0xCD9E8D57u} * w2;
    w0 = static_cast<uint32_t>(b >> 32) ^ w1 ^ key0;
    w2 = static_cast<uint32_t>(a >> 32) ^ w3 ^ key1;
    w1 = static_cast<uint32_t>(b);
    w3 = static_cast<uint32_t>(a);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {w0, w1, w2, w3};
}

// A word is below it with probability p.
RNNEXT_INLINE uint32_t threshold(double p) {
  const double limit = p * 4294967296.0;
  return static_cast<uint32_t>(limit < 4294967295.0 ? limit : 4294967295.0);
}

template <class T>
RNNEXT_INLINE T dropout_scale(double p) {
  return p < 1 ? static_cast<T>(1 / (1 - p)) : T(0);
}

// Between 0 and 1, less 1 itself.
template <class T>
RNNEXT_INLINE T fraction(uint32_t word) {
  return static_cast<T>(word >> 8) * T(0x1p-24);
}

// Box and Muller 1958: the words of an even place and the odd one after it make two values.
template <class T>
RNNEXT_INLINE T normal(uint32_t first, uint32_t second, bool odd, double mean, double deviation) {
  using V = Vec<T>;
  const T u1 = static_cast<T>((first >> 8) + 1) * T(0x1p-24);
  const V radius = sqrt(V(T(-2)) * log(V(u1))) * V(T(deviation));
  const V angle = V(fraction<T>(second)) * V(T(6.283185307179586));
  return (radius * (odd ? sin(angle) : cos(angle)) + V(T(mean))).v;
}

// Element `place` of one noise of a cell.
template <class T>
RNNEXT_INLINE T noise(const Noise& kind, int64_t place, uint64_t seed, uint32_t scan, uint32_t number) {
  const Words words = philox(place / 4, seed, scan, 1 + number);
  const int i = static_cast<int>(place % 4);
  const uint32_t word = words[i];
  switch (kind.kind) {
    case Noise::kDropout:
      return word >= threshold(kind.a) ? dropout_scale<T>(kind.a) : T(0);
    case Noise::kBernoulli:
      return word < threshold(kind.a) ? T(1) : T(0);
    case Noise::kNormal:
      return normal<T>(words[i & 2], words[i | 1], i % 2 == 1, kind.a, kind.b);
    default:
      return T(kind.a) + T(kind.b - kind.a) * fraction<T>(word);
  }
}

}  // namespace rnnext::gpu
