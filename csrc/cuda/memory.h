// Memory of one scan, and operands of products in it.
#pragma once

#include <vector>

#include "cuda/elementwise.h"
#include "cuda/gemm.h"
#include "cuda/torch.h"

namespace rnnext::cuda {

// Buffers that are asked for one by one and allocated together. They go back when the scan's work has been queued: torch's
// allocator gives them to later work of the same stream alone.
class Arena {
 public:
  // `buffer`, which must not move until allocate(), will point to `count` values. None: null.
  template <class Value>
  void add(Value** buffer, int64_t count) {
    *buffer = nullptr;
    if (count <= 0) return;
    requests_.push_back({reinterpret_cast<void**>(buffer), size_});
    size_ += (count * static_cast<int64_t>(sizeof(Value)) + kLine - 1) / kLine * kLine;
  }

  void allocate() {
    if (size_ == 0) return;
    memory_ = cuda::allocate(size_);
    for (const Request& r : requests_) *r.buffer = static_cast<char*>(memory_.data_ptr()) + r.offset;
  }

 private:
  struct Request {
    void** buffer;
    int64_t offset;
  };
  static constexpr int64_t kLine = 256;  // bytes; what torch's allocator aligns to is more

  std::vector<Request> requests_;
  int64_t size_ = 0;
  at::Tensor memory_;
};

// Rows as an operand of products: as they are, or rounded into a buffer of their own.
template <class T>
class Operand {
 public:
  // For at most so many rows.
  Operand(Arena& arena, Operands type, int64_t rows, int64_t columns) : type_(rounds(type)), columns_(columns) {
    if (type_ != Operands::kAsGiven) arena.add(&buffer_, rows * aligned(columns));
  }
  Operand(const Operand&) = delete;

  // What is rounded, all columns or the first ones, stays until the next call.
  Matrix of(Rows<const T> rows, int64_t count, Stream stream) const { return of(rows, count, columns_, stream); }
  Matrix of(Rows<const T> rows, int64_t count, int64_t columns, Stream stream) const {
    if (type_ == Operands::kAsGiven) return {rows.data, rows.stride};
    const int64_t stride = aligned(columns);
    if constexpr (std::is_same_v<T, float>) round_rows(type_, count, columns, rows, {buffer_, stride}, stream);
    return {buffer_, stride};
  }

  // The place of (row, column) in such a matrix.
  Matrix at(Matrix m, int64_t row, int64_t column) const {
    const int64_t bytes = type_ == Operands::kAsGiven ? sizeof(T) : sizeof(uint16_t);
    return {static_cast<const char*>(m.data) + (row * m.stride + column) * bytes, m.stride, m.transposed};
  }

  Operands type() const { return type_; }

 private:
  static Operands rounds(Operands type) { return std::is_same_v<T, float> ? type : Operands::kAsGiven; }
  // Products are at their best where rows begin at 16 bytes.
  static int64_t aligned(int64_t columns) { return (columns + 7) / 8 * 8; }

  const Operands type_;
  const int64_t columns_;
  uint16_t* buffer_ = nullptr;
};

inline Matrix transposed(Matrix m) {
  return {m.data, m.stride, !m.transposed};
}

}  // namespace rnnext::cuda
