#include "cpu/caches.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace rnnext::cpu {
namespace {

// Linux lists the caches of a processor by number: level, type, and a size such as "1024K". (sysconf, too, knows sizes, but
// in a virtual machine they may be those of all processors together.)
Caches read() {
  Caches found{0, 0};
  for (int i = 0;; ++i) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(i) + "/";
    int level = 0;
    std::string type;
    int64_t size = 0;
    char unit = 0;
    std::ifstream(folder + "level") >> level;
    std::ifstream(folder + "type") >> type;
    std::ifstream(folder + "size") >> size >> unit;
    if (!level) break;
    if (type == "Instruction") continue;
    size <<= unit == 'M' ? 20 : unit == 'K' ? 10 : 0;
    if (level <= 2) found.own = std::max(found.own, size);
    found.largest = std::max(found.largest, size);
  }
  const Caches usual;
  return found.own > 0 ? found : usual;
}

}  // namespace

const Caches& caches() {
  static const Caches result = read();
  return result;
}

}  // namespace rnnext::cpu
