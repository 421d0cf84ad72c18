// One piece of memory for all the buffers of a scan, cut at cache lines.
#pragma once

#include <ATen/Context.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace rnnext::cpu {

// The memory stays with the thread for its next scan: mapping fresh pages can cost as much as the scan itself. A piece
// of more than kKept is given back.
template <class T>
class Workspace {
 public:
  // Asks for `count` values; *buffer points to them after allocate().
  void add(T** buffer, int64_t count) {
    requests_.push_back({buffer, size_});
    size_ += (count + kLine - 1) / kLine * kLine;
  }

  void allocate() {
    Memory& memory = kept();
    if (memory.size < size_) {
      memory = {};  // before the larger one comes
      memory = {c10::GetCPUAllocator()->allocate(size_ * sizeof(T)), size_};
    }
    T* base = static_cast<T*>(memory.data.get());
    // What at::empty does where uninitialised memory is to show itself.
    if (at::globalContext().deterministicAlgorithms() && at::globalContext().deterministicFillUninitializedMemory()) {
      std::fill_n(base, size_, std::numeric_limits<T>::quiet_NaN());
    }
    for (const Request& r : requests_) *r.buffer = base + r.offset;
  }

  ~Workspace() {
    if (kept().size > kKept) kept() = {};
  }

 private:
  struct Request {
    T** buffer;
    int64_t offset;
  };
  struct Memory {
    c10::DataPtr data;
    int64_t size = 0;
  };
  static constexpr int64_t kLine = 64 / sizeof(T);  // the allocator's alignment, too
  static constexpr int64_t kKept = (int64_t{256} << 20) / sizeof(T);

  static Memory& kept() {
    thread_local Memory memory;
    return memory;
  }

  std::vector<Request> requests_;
  int64_t size_ = 0;
};

static_assert(c10::gAlignment >= 64);

}  // namespace rnnext::cpu
