// One piece of memory for all the buffers of a scan, cut at cache lines.
#pragma once

#include <ATen/ATen.h>

#include <limits>
#include <vector>

namespace rnnext::cpu {

// The memory stays with the thread for its next scan: mapping fresh pages can cost as much as the scan itself. Pieces
// beyond kKept are given back.
template <class T>
class Workspace {
 public:
  // Asks for `count` values; *buffer points to them after allocate().
  void add(T** buffer, int64_t count) {
    requests_.push_back({buffer, size_});
    size_ += (count + kLine - 1) / kLine * kLine;
  }

  void allocate() {
    at::Tensor& memory = kept();
    if (!memory.defined() || memory.numel() < size_ + kLine) {
      memory = at::Tensor();  // before the larger one comes
      memory = at::empty({size_ + kLine}, at::CppTypeToScalarType<T>::value);
    } else if (at::globalContext().deterministicAlgorithms() &&
               at::globalContext().deterministicFillUninitializedMemory()) {
      memory.fill_(std::numeric_limits<T>::quiet_NaN());
    }
    const auto address = reinterpret_cast<uintptr_t>(memory.template data_ptr<T>());
    T* base = reinterpret_cast<T*>((address + 63) / 64 * 64);
    for (const Request& r : requests_) *r.buffer = base + r.offset;
  }

  ~Workspace() {
    if (kept().defined() && kept().nbytes() > kKept) kept() = at::Tensor();
  }

 private:
  struct Request {
    T** buffer;
    int64_t offset;
  };
  static constexpr int64_t kLine = 64 / sizeof(T);
  static constexpr size_t kKept = size_t{256} << 20;  // bytes

  static at::Tensor& kept() {
    thread_local at::Tensor memory;
    return memory;
  }

  std::vector<Request> requests_;
  int64_t size_ = 0;
};

}  // namespace rnnext::cpu
