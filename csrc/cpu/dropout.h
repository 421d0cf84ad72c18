// Dropout with a counter-based generator: an element's fate depends on the seed and on its place alone.
#pragma once

#include <cstdint>

namespace rnnext::RNNEXT_ISA {

// Philox4x32-10 (Salmon et al. 2011). Element i of a layer takes word i % 4 of counter (i / 4, layer); key: the seed.
template <class T>
void dropout(int64_t first, int64_t count, const T* src, T* dst, uint64_t seed, uint32_t layer, double p) {
  typedef uint64_t Words __attribute__((vector_size(RNNEXT_VECTOR_BYTES)));  // each holds a 32-bit word
  constexpr int lanes = sizeof(Words) / sizeof(uint64_t);
  constexpr uint64_t low = 0xffffffff;
  const uint32_t threshold = static_cast<uint32_t>(p * 4294967296.0 < 4294967295.0 ? p * 4294967296.0 : 4294967295.0);
  const T scale = p < 1 ? static_cast<T>(1 / (1 - p)) : T(0);
  for (int64_t base = 0; base < count; base += 4 * lanes) {
    Words counter;
    for (int j = 0; j < lanes; ++j) counter[j] = static_cast<uint64_t>(first + base) / 4 + j;
    Words word[4] = {counter & low, counter >> 32, Words{} + layer, Words{}};
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
    uint32_t bits[4 * lanes];
    for (int j = 0; j < lanes; ++j) {
      for (int k = 0; k < 4; ++k) bits[4 * j + k] = static_cast<uint32_t>(word[k][j]);
    }
    const int64_t n = count - base < 4 * lanes ? count - base : 4 * lanes;
    for (int64_t i = 0; i < n; ++i) dst[base + i] = bits[i] >= threshold ? src[base + i] * scale : T(0);
  }
}

}  // namespace rnnext::RNNEXT_ISA
