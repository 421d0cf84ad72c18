// A scan that is only planned: its sizes, from the arguments of an op that plans.
#pragma once

#include "engine/check.h"
#include "engine/stack.h"

namespace rnnext {

// `sizes`: the hidden size, then the cell's others.
inline Shape shape_of(const CellShape& cell, int64_t C, at::IntArrayRef sizes) {
  TORCH_CHECK(static_cast<int>(sizes.size()) == 1 + cell.sizes, "rnnext: ", sizes.size(), " sizes given, but ",
              cell.name, " has ", 1 + cell.sizes);
  for (int64_t size : sizes) check_size(cell, size);
  return Shape(cell, C, sizes.data());
}

struct PlannedScan {
  Shape shape;
  Steps steps;
  std::vector<int64_t> offsets{0};
  const int64_t block_rows;

  PlannedScan(const CellShape& cell, int64_t T, int64_t N, int64_t C, at::IntArrayRef sizes, int64_t heads,
              const optional<Tensor>& batch_sizes, int64_t block_rows)
      : shape(shape_of(cell, checked("C", C), sizes)), block_rows(block_rows) {
    checked("T", T), checked("N", N);
    const int64_t h = shape.state_width(0);
    TORCH_CHECK(heads == 1 || (heads > 0 && h == shape.H() && h % heads == 0), "rnnext: heads is ", heads,
                ", expected 1 or a divisor of the hidden size ", shape.H());
    shape.heads = heads;
    if (batch_sizes) {
      Sizes s{};
      check_batch_sizes(*batch_sizes, kMost, s);
      TORCH_CHECK(batch_sizes->size(0) == T && s.N == N, "rnnext: batch_sizes has ", batch_sizes->size(0),
                  " steps and begins with ", s.N, ", but T is ", T, " and N is ", N);
      const int64_t* n = batch_sizes->const_data_ptr<int64_t>();
      for (int64_t t = 0; t < s.T; ++t) offsets.push_back(offsets.back() + n[t]);
      T = s.T;
    }
    steps = {T, N, batch_sizes ? offsets.data() : nullptr, false, block_steps(block_rows, T, N)};
  }
  PlannedScan(const PlannedScan&) = delete;

  // The steps where layers go side by side.
  Steps linked() const {
    Steps result = steps;
    result.block = block_steps(linked_block_rows(block_rows, steps.total()), steps.T, steps.N);
    return result;
  }

 private:
  static constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

  static int64_t checked(const char* name, int64_t value) {
    TORCH_CHECK(0 < value && value <= kMost, "rnnext: ", name, " is ", value, ", expected 1 to ", kMost);
    return value;
  }
};

}  // namespace rnnext
