#include "cuda/elementwise.h"

#include "cuda/launch.h"
#include "cuda/random.cuh"

namespace rnnext::gpu {
namespace {

template <class T>
__global__ void combine_biases(int64_t gates, int64_t summed, int64_t recurrent, const T* b_ih, const T* b_hh,
                               T* bias) {
  const int64_t i = global_thread();
  if (i >= gates + recurrent - summed) return;
  const int64_t of_hh = i < summed ? i : i < gates ? -1 : i - gates + summed;
  T sum = b_ih && i < gates ? b_ih[i] : T(0);
  if (b_hh && of_hh >= 0) sum += b_hh[of_hh];
  bias[i] = sum;
}

__global__ void round_rows(bool half, int64_t rows, int64_t columns, Rows<const float> src, Rows<uint16_t> dst) {
  const int64_t i = global_thread(), row = i / dst.stride, column = i % dst.stride;
  if (row >= rows) return;
  const float value = column < columns ? src[row][column] : 0.0f;
  dst[row][column] = half ? half_bits(value) : bfloat16_bits(value);
}

template <class T>
__global__ void clear_rows(int64_t rows, int64_t columns, Rows<T> dst) {
  const int64_t i = global_thread();
  if (i < rows * columns) dst[i / columns][i % columns] = T(0);
}

template <class T>
__global__ void copy_rows(int64_t rows, int64_t columns, Rows<const T> src, Rows<T> dst) {
  const int64_t i = global_thread(), row = i / columns;
  if (row < rows) dst[row][i % columns] = src[row][i % columns];
}

template <class T>
__global__ void add_rows(int64_t rows, int64_t columns, Rows<const T> src, Rows<T> dst) {
  const int64_t i = global_thread(), row = i / columns;
  if (row < rows) dst[row][i % columns] += src[row][i % columns];
}

constexpr int kUploaded = 256;
struct Integers {
  int64_t values[kUploaded];
};

__global__ void upload(const __grid_constant__ Integers integers, int64_t count, int64_t* dst) {
  const int64_t i = global_thread();
  if (i < count) dst[i] = integers.values[i];
}

// The step of a row: the last one that begins at it or before.
RNNEXT_INLINE int64_t step_of(const cuda::DeviceSteps& steps, int64_t row) {
  if (!steps.offsets) return row / steps.N;
  int64_t begin = 0, end = steps.T;
  while (end - begin > 1) {
    const int64_t middle = (begin + end) / 2;
    (steps.offsets[middle] <= row ? begin : end) = middle;
  }
  return begin;
}

RNNEXT_INLINE int64_t first_row(const cuda::DeviceSteps& steps, int64_t t) {
  return steps.offsets ? steps.offsets[t] : t * steps.N;
}

template <class T>
__global__ void states_before(const __grid_constant__ cuda::DeviceSteps steps, int64_t first, int64_t rows,
                              int64_t columns, Rows<const T> later, Rows<const T> initial, Rows<T> dst) {
  const int64_t i = global_thread(), r = i / columns, column = i % columns;
  if (r >= rows) return;
  const int64_t row = first + r, t = step_of(steps, row), n = row - first_row(steps, t);
  const int64_t previous = steps.reverse ? t + 1 : t - 1;
  bool continues = previous >= steps.scanned.begin && previous < steps.scanned.end;
  if (continues && steps.reverse) continues = n < first_row(steps, previous + 1) - first_row(steps, previous);
  T value = T(0);
  if (continues) {
    value = later[first_row(steps, previous) + n][column];
  } else if (initial) {
    value = initial[n][column];
  }
  dst[r][column] = value;
}

// A block for 32 columns of a sample: 8 threads a column, whose sums are added in one order.
constexpr int kSumColumns = 32, kSumRows = 8;

template <class T>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    column_sums(int64_t samples, int64_t rows, int64_t columns, Rows<const T> src, Rows<T> sums, bool accumulate) {
  T* partial = reinterpret_cast<T*>(shared_memory());  // [kSumRows][kSumColumns]
  const int lane = threadIdx.x % kSumColumns, part = threadIdx.x / kSumColumns;
  const int64_t column = int64_t{blockIdx.x} * kSumColumns + lane, sample = blockIdx.y;
  T sum = T(0);
  if (column < columns) {
    for (int64_t r = sample + part * samples; r < rows; r += kSumRows * samples) sum += src[r][column];
  }
  partial[part * kSumColumns + lane] = sum;
  __syncthreads();
  if (part > 0 || column >= columns) return;
  for (int i = 1; i < kSumRows; ++i) sum += partial[i * kSumColumns + lane];
  T& target = sums[sample][column];
  target = accumulate ? target + sum : sum;
}

template <class T>
__global__ void dropout(int64_t first, int64_t count, const T* src, T* dst, uint64_t seed, uint32_t layer, double p) {
  const int64_t i = global_thread();
  if (i >= count) return;
  const uint32_t word = philox((first + i) / 4, seed, layer, 0)[static_cast<int>((first + i) % 4)];
  dst[i] = word >= threshold(p) ? src[i] * dropout_scale<T>(p) : T(0);
}

template <class T>
__global__ void draw(Noise kind, int64_t first, int64_t period, int64_t count, T* dst, uint64_t seed, uint32_t scan,
                     uint32_t number) {
  const int64_t i = global_thread();
  if (i < count) dst[i] = noise<T>(kind, first + i % period, seed, scan, number);
}

template <class T>
__global__ void fill(int64_t count, T value, T* dst) {
  const int64_t i = global_thread();
  if (i < count) dst[i] = value;
}

}  // namespace
}  // namespace rnnext::gpu

namespace rnnext::cuda {

template <class T>
void combine_biases(const Shape& shape, const T* b_ih, const T* b_hh, T* bias, Stream stream) {
  const CellShape& cell = *shape.cell;
  launch_each(&gpu::combine_biases<T>, cell.slots() * shape.H(), stream, shape.gate_columns(), cell.summed * shape.H(),
              shape.recurrent_columns(), b_ih, b_hh, bias);
}

void round_rows(Operands kind, int64_t rows, int64_t columns, Rows<const float> src, Rows<uint16_t> dst,
                Stream stream) {
  launch_each(&gpu::round_rows, rows * dst.stride, stream, kind == Operands::kHalf, rows, columns, src, dst);
}

template <class T>
void clear_rows(int64_t rows, int64_t columns, Rows<T> dst, Stream stream) {
  launch_each(&gpu::clear_rows<T>, rows * columns, stream, rows, columns, dst);
}

template <class T>
void copy_rows(int64_t rows, int64_t columns, Rows<const T> src, Rows<T> dst, Stream stream) {
  launch_each(&gpu::copy_rows<T>, rows * columns, stream, rows, columns, src, dst);
}

template <class T>
void add_rows(int64_t rows, int64_t columns, Rows<const T> src, Rows<T> dst, Stream stream) {
  launch_each(&gpu::add_rows<T>, rows * columns, stream, rows, columns, src, dst);
}

void upload(const int64_t* values, int64_t count, int64_t* dst, Stream stream) {
  for (int64_t i = 0; i < count; i += gpu::kUploaded) {
    gpu::Integers integers{};
    const int64_t n = std::min<int64_t>(gpu::kUploaded, count - i);
    std::copy_n(values + i, n, integers.values);
    launch_each(&gpu::upload, n, stream, integers, n, dst + i);
  }
}

template <class T>
void states_before(const DeviceSteps& steps, int64_t first, int64_t rows, int64_t columns, Rows<const T> later,
                   Rows<const T> initial, Rows<T> dst, Stream stream) {
  launch_each(&gpu::states_before<T>, rows * columns, stream, steps, first, rows, columns, later, initial, dst);
}

template <class T>
void column_sums(int64_t samples, int64_t rows, int64_t columns, Rows<const T> src, Rows<T> sums, bool accumulate,
                 Stream stream) {
  constexpr int threads = gpu::kSumColumns * gpu::kSumRows;
  const auto blocks = static_cast<unsigned>((columns + gpu::kSumColumns - 1) / gpu::kSumColumns);
  if (blocks == 0) return;
  constexpr int64_t most = 65535;  // of a grid's second dimension
  for (int64_t i = 0; i < samples; i += most) {
    const int64_t n = std::min(most, samples - i);
    launch(&gpu::column_sums<T>, {dim3(blocks, static_cast<unsigned>(n)), threads, int{sizeof(T)} * threads}, stream,
           samples, rows - i, columns, src.from(i), sums.from(i), accumulate);
  }
}

template <class T>
void dropout(int64_t first, int64_t count, const T* src, T* dst, uint64_t seed, uint32_t layer, double p,
             Stream stream) {
  launch_each(&gpu::dropout<T>, count, stream, first, count, src, dst, seed, layer, p);
}

template <class T>
void noise(const Noise& kind, int64_t first, int64_t period, int64_t count, T* dst, uint64_t seed, uint32_t scan,
           uint32_t number, Stream stream) {
  launch_each(&gpu::draw<T>, count, stream, kind, first, period, count, dst, seed, scan, number);
}

template <class T>
void fill(int64_t count, T value, T* dst, Stream stream) {
  launch_each(&gpu::fill<T>, count, stream, count, value, dst);
}

#define RNNEXT_INSTANTIATE(T)                                                                                          \
  template void combine_biases<T>(const Shape&, const T*, const T*, T*, Stream);                                       \
  template void clear_rows<T>(int64_t, int64_t, Rows<T>, Stream);                                                      \
  template void add_rows<T>(int64_t, int64_t, Rows<const T>, Rows<T>, Stream);                                         \
  template void copy_rows<T>(int64_t, int64_t, Rows<const T>, Rows<T>, Stream);                                        \
  template void states_before<T>(const DeviceSteps&, int64_t, int64_t, int64_t, Rows<const T>, Rows<const T>, Rows<T>, \
                                 Stream);                                                                              \
  template void column_sums<T>(int64_t, int64_t, int64_t, Rows<const T>, Rows<T>, bool, Stream);                       \
  template void dropout<T>(int64_t, int64_t, const T*, T*, uint64_t, uint32_t, double, Stream);                        \
  template void noise<T>(const Noise&, int64_t, int64_t, int64_t, T*, uint64_t, uint32_t, uint32_t, Stream);           \
  template void fill<T>(int64_t, T, T*, Stream);
RNNEXT_INSTANTIATE(float)
RNNEXT_INSTANTIATE(double)

}  // namespace rnnext::cuda
