// How large the caches of this machine are.
#pragma once

#include <cstdint>

namespace rnnext::cpu {

// Bytes: of the largest cache that is a processor's own, and of the largest one.
struct Caches {
  int64_t own = 1 << 20, largest = 32 << 20;
};

// As the system says; as above where it says nothing. Asked once.
const Caches& caches();

}  // namespace rnnext::cpu
