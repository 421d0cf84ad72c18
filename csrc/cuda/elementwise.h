// The small kernels around products and stages: they move, round, draw and add up.
#pragma once

#include "cuda/device.h"
#include "engine/params.h"

namespace rnnext::cuda {

// The bias of every slot: b_ih, with b_hh added for the summed gates; then b_hh of the apart gates. Either may be null.
template <class T>
void combine_biases(const Shape& shape, const T* b_ih, const T* b_hh, T* bias, Stream stream);

// Rows in half or bfloat16, columns up to dst's stride filled with zeros.
void round_rows(Operands kind, int64_t rows, int64_t columns, Rows<const float> src, Rows<uint16_t> dst, Stream stream);

// dst = 0
template <class T>
void clear_rows(int64_t rows, int64_t columns, Rows<T> dst, Stream stream);

// dst = src for each row
template <class T>
void copy_rows(int64_t rows, int64_t columns, Rows<const T> src, Rows<T> dst, Stream stream);

// dst += src for each row
template <class T>
void add_rows(int64_t rows, int64_t columns, Rows<const T> src, Rows<T> dst, Stream stream);

// Integers to the device, as parameters of kernels: without a copy from memory that the host might change meanwhile.
void upload(const int64_t* values, int64_t count, int64_t* dst, Stream stream);

// Where the steps of packed rows lie, on the device; null: N rows at each step.
struct DeviceSteps {
  int64_t T, N;
  const int64_t* offsets;  // [T + 1]
  bool reverse;
  Range scanned;
};

// A state before the step of each of the rows first .. first + rows: row r of dst. `later`: rows [all, columns] of the
// state after each step; initial: [N, columns], or null for zeros.
template <class T>
void states_before(const DeviceSteps& steps, int64_t first, int64_t rows, int64_t columns, Rows<const T> later,
                   Rows<const T> initial, Rows<T> dst, Stream stream);

// sums[i][j] = (accumulate ? sums[i][j] : 0) + sum of src[r][j] over the rows r = i, i + samples, ..
template <class T>
void column_sums(int64_t samples, int64_t rows, int64_t columns, Rows<const T> src, Rows<T> sums, bool accumulate,
                 Stream stream);

// As Kernels::dropout and Kernels::noise in cpu/kernels.h; first need not be a multiple of 4. The noise is the same again
// after `period` elements.
template <class T>
void dropout(int64_t first, int64_t count, const T* src, T* dst, uint64_t seed, uint32_t layer, double p,
             Stream stream);
template <class T>
void noise(const Noise& kind, int64_t first, int64_t period, int64_t count, T* dst, uint64_t seed, uint32_t scan,
           uint32_t number, Stream stream);
template <class T>
void fill(int64_t count, T value, T* dst, Stream stream);

}  // namespace rnnext::cuda
