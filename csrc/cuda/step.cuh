// The stages of a cell's step on a GPU: a kernel a stage, a thread for each unit of each row; or, where a stage adds up
// totals over its units, a block for each row; or, where it sums over the sequences, a thread for each unit.
#pragma once

#include "cuda/scalar.h"

#include "cuda/cell.h"
#include "cuda/launch.h"
#include "engine/units.h"

namespace rnnext::gpu {

constexpr int kRowThreads = 256;

template <class Cell>
constexpr int kRecorded = at_least_one(Cell::shape.saved.count + Cell::shape.all_states() - Cell::shape.streams);

// What the pointers of a step point to on the host, by value.
template <class T, class Step, class Cell, int Offsets0, int Offsets1, int Offsets2, int Sums>
struct Arguments {
  Step step;
  int64_t sizes[1 + Cell::shape.sizes];
  const T* param[at_least_one(Cell::shape.all_params())];
  int64_t offsets0[at_least_one(Offsets0)], offsets1[at_least_one(Offsets1)], offsets2[at_least_one(Offsets2)];
  int64_t sums[at_least_one(Sums)];

  void copy(const Step& given) {
    step = given;
    copy(given.sizes, 1 + Cell::shape.sizes, sizes);
    copy(given.param, Cell::shape.all_params(), param);
  }
  template <class Value>
  static void copy(const Value* from, int count, Value* to) {
    for (int i = 0; i < count && from; ++i) to[i] = from[i];
  }
};

template <class T, class Cell>
struct ForwardArguments : Arguments<T, StepForward<T>, Cell, kRecorded<Cell>, Cell::shape.values.count,
                                    Cell::shape.all_products(), Cell::shape.batch_sums.count> {
  explicit ForwardArguments(const StepForward<T>& given) {
    this->copy(given);
    this->copy(given.record.offset, kRecorded<Cell>, this->offsets0);
    this->copy(given.values.offset, Cell::shape.values.count, this->offsets1);
    this->copy(given.products.offset, Cell::shape.all_products(), this->offsets2);
    this->copy(given.batch_sums.offset, Cell::shape.batch_sums.count, this->sums);
  }
  RNNEXT_INLINE StepForward<T> on_device() const {
    StepForward<T> result = this->step;
    result.sizes = this->sizes, result.param = this->param;
    result.record.offset = this->offsets0, result.values.offset = this->offsets1;
    result.products.offset = this->offsets2, result.batch_sums.offset = this->sums;
    return result;
  }
};

template <class T, class Cell>
struct BackwardArguments
    : Arguments<T, StepBackward<T>, Cell, kRecorded<Cell>, Cell::shape.streams * Cell::shape.gradients(),
                Cell::shape.all_products() + Cell::shape.back_values.count,
                Cell::shape.batch_sums.count + Cell::shape.back_batch_sums.count> {
  static constexpr int kProducts = Cell::shape.all_products(), kSums = Cell::shape.batch_sums.count;

  explicit BackwardArguments(const StepBackward<T>& given) {
    this->copy(given);
    this->copy(given.record.offset, kRecorded<Cell>, this->offsets0);
    this->copy(given.gradients.offset, Cell::shape.streams * Cell::shape.gradients(), this->offsets1);
    this->copy(given.operands.offset, kProducts, this->offsets2);
    this->copy(given.values.offset, Cell::shape.back_values.count, this->offsets2 + kProducts);
    this->copy(given.forward_sums.offset, kSums, this->sums);
    this->copy(given.batch_sums.offset, Cell::shape.back_batch_sums.count, this->sums + kSums);
  }
  RNNEXT_INLINE StepBackward<T> on_device() const {
    StepBackward<T> result = this->step;
    result.sizes = this->sizes, result.param = this->param;
    result.record.offset = this->offsets0, result.gradients.offset = this->offsets1;
    result.operands.offset = this->offsets2, result.values.offset = this->offsets2 + kProducts;
    result.forward_sums.offset = this->sums, result.batch_sums.offset = this->sums + kSums;
    return result;
  }
};

// Sums of all threads of a block, in one order; the first thread has them. `sums`: [kRowThreads / 32] in shared memory.
template <class T>
RNNEXT_INLINE T block_sum(T value, T* sums) {
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  T total = T(0);
  for (int warp = 0; warp < kRowThreads / 32; ++warp) total += sums[warp];
  __syncthreads();  // the sums may be written again
  return total;
}

// `Sums`: whether a thread takes a unit of all rows.
template <class Units, bool Sums, class Step, class Work>
RNNEXT_INLINE void for_each_unit(const Step& step, Work work) {
  using RowTotals = typename Units::RowTotals;
  using T = typename Units::V::Scalar;
  const auto run = [&](int64_t row, int64_t unit, RowTotals& totals) {
    Units u(step, row, unit, 1, totals, Sums ? step.rows : row + 1);
    work(u);
    u.finish();
  };
  if constexpr (RowTotals::count == 0) {
    const int64_t units = step.end - step.begin, i = global_thread();
    if (i >= (Sums ? 1 : step.rows) * units) return;
    RowTotals totals;
    run(i / units, step.begin + i % units, totals);
  } else {
    RowTotals totals;
    for (int64_t unit = step.begin + threadIdx.x; unit < step.end; unit += kRowThreads) run(blockIdx.x, unit, totals);
    T* sums = reinterpret_cast<T*>(shared_memory());
    for (Vec<T>& sum : totals.sums) sum = Vec<T>(block_sum(sum.v, sums));
    if (threadIdx.x == 0) totals.store(step.totals[blockIdx.x]);
  }
}

template <class T, class C, int Stage, bool Keep>
__global__ void __launch_bounds__(kRowThreads) forward_kernel(const __grid_constant__ ForwardArguments<T, C> a) {
  using U = ForwardUnits<T, C, Stage, Keep>;
  for_each_unit<U, C::shape.forward[Stage].sums_batch>(a.on_device(), [](U& u) { C::template forward<Stage>(u); });
}

template <class T, class C, int Stage>
__global__ void __launch_bounds__(kRowThreads) backward_kernel(const __grid_constant__ BackwardArguments<T, C> a) {
  using U = BackwardUnits<T, C, Stage>;
  for_each_unit<U, C::shape.backward[Stage].sums_batch>(a.on_device(), [](U& u) { C::template backward<Stage>(u); });
}

template <class T, class Arguments>
void launch_stage(void (*kernel)(Arguments), const Stage& stage, const Arguments& a, cuda::Stream stream) {
  if (stage.totals > 0) {
    cuda::launch(kernel, {dim3(static_cast<unsigned>(a.step.rows)), kRowThreads, sizeof(T) * kRowThreads / 32}, stream,
                 a);
  } else {
    const int64_t rows = stage.sums_batch ? 1 : a.step.rows;
    cuda::launch_each(kernel, rows * (a.step.end - a.step.begin), stream, a);
  }
}

template <class T, class C, int Stage>
void forward(const StepForward<T>& step, cuda::Stream stream) {
  const ForwardArguments<T, C> a(step);
  launch_stage<T>(step.record.rows ? &forward_kernel<T, C, Stage, true> : &forward_kernel<T, C, Stage, false>,
                  C::shape.forward[Stage], a, stream);
}

template <class T, class C, int Stage>
void backward(const StepBackward<T>& step, cuda::Stream stream) {
  const BackwardArguments<T, C> a(step);
  launch_stage<T>(&backward_kernel<T, C, Stage>, C::shape.backward[Stage], a, stream);
}

template <class T, class C, int Stage = 0>
constexpr void fill_forward(cuda::Cell<T>& cell) {
  if constexpr (Stage < C::shape.forward_stages) {
    cell.forward[Stage] = &forward<T, C, Stage>;
    fill_forward<T, C, Stage + 1>(cell);
  }
}

template <class T, class C, int Stage = 0>
constexpr void fill_backward(cuda::Cell<T>& cell) {
  if constexpr (Stage < C::shape.backward_stages) {
    cell.backward[Stage] = &backward<T, C, Stage>;
    fill_backward<T, C, Stage + 1>(cell);
  }
}

template <class T, class C>
constexpr cuda::Cell<T> cell(const cuda::Persistent* persistent) {
  cuda::Cell<T> result{C::shape, {}, {}, persistent};
  fill_forward<T, C>(result);
  fill_backward<T, C>(result);
  return result;
}

}  // namespace rnnext::gpu
