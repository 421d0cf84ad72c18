// One allocation for all the buffers of a scan, cut at cache lines.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace rnnext::cpu {

template <class T>
class Workspace {
 public:
  // Asks for `count` values; *buffer points to them after allocate().
  void add(T** buffer, int64_t count) {
    requests_.push_back({buffer, size_});
    size_ += (count + kLine - 1) / kLine * kLine;
  }

  void allocate() {
    memory_ = at::empty({size_ + kLine}, at::CppTypeToScalarType<T>::value);
    const auto address = reinterpret_cast<uintptr_t>(memory_.template data_ptr<T>());
    T* base = reinterpret_cast<T*>((address + 63) / 64 * 64);
    for (const Request& r : requests_) *r.buffer = base + r.offset;
  }

 private:
  struct Request {
    T** buffer;
    int64_t offset;
  };
  static constexpr int64_t kLine = 64 / sizeof(T);
  std::vector<Request> requests_;
  int64_t size_ = 0;
  at::Tensor memory_;
};

}  // namespace rnnext::cpu
