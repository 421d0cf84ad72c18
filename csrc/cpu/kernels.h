// The functions that exist once for each instruction set: the cells' steps, and what moves data into the products'
// order. A table of them is chosen when the library is loaded.
#pragma once

#include <cstdint>

#include "engine/cell.h"

namespace rnnext {

// Products that are at most so deep write a wide C row by row, as it lies: that is what takes their time.
constexpr int64_t kShallow = 4;

template <class T>
struct Kernels {
  const Cell<T>* cells;
  int cell_count;

  // C [m, n] (+)= A [m, k] B [k, n]
  void (*gemm)(int64_t m, int64_t n, int64_t k, Rows<const T> a, Rows<const T> b, Rows<T> c, bool accumulate);
  // C [m, n] (+)= A [m, k] W^T for W [n, k], read as it lies: for few rows
  void (*gemm_nt)(int64_t m, int64_t n, int64_t k, Rows<const T> a, Rows<const T> w, Rows<T> c, bool accumulate);
  // C [m, n] (+)= A^T B for A [k, m], B [k, n]
  void (*gemm_tn)(int64_t m, int64_t n, int64_t k, Rows<const T> a, Rows<const T> b, Rows<T> c, bool accumulate);
  // dst[c][r] = src[r][c]
  void (*transpose)(int64_t rows, int64_t columns, Rows<const T> src, Rows<T> dst);
  // sums[j] = (accumulate ? sums[j] : 0) + sum over i of src[i][j]
  void (*column_sums)(int64_t rows, int64_t columns, Rows<const T> src, T* sums, bool accumulate);
  // dst = src where the counter-based generator keeps the element, times 1 / (1 - p); else 0. Dense, `count` elements
  // that begin at element `first` of the layer's output; `first` is a multiple of 4.
  void (*dropout)(int64_t first, int64_t count, const T* src, T* dst, uint64_t seed, uint32_t layer, double p);
  // Elements first .. first + count of noise `number` of a cell, in one scan (layer * D + direction).
  void (*noise)(const Noise& kind, int64_t first, int64_t count, T* dst, uint64_t seed, uint32_t scan, uint32_t number);
};

// Products of operands rounded to bfloat16, for processors that have instructions for them.
struct BFloat16Kernels {
  bool (*supported)();
  // C [m, n] (+)= A [m, 2 pairs] B [pairs][n][2], pairs of bfloat16 in place of each float.
  void (*gemm)(int64_t m, int64_t n, int64_t pairs, Rows<const float> a, Rows<const float> b, Rows<float> c,
               bool accumulate);
  // C [m, n] (+)= A^T B for A [pairs][m][2]
  void (*gemm_tn)(int64_t m, int64_t n, int64_t pairs, Rows<const float> a, Rows<const float> b, Rows<float> c,
                  bool accumulate);
  // Rows in bfloat16, each with a zero after an odd number of columns.
  void (*round_rows)(int64_t rows, int64_t columns, Rows<const float> src, Rows<uint16_t> dst);
  // Two rows in bfloat16, dst = first[0], second[0], first[1], ...; null is a row of zeros.
  void (*round_pair)(int64_t columns, const float* first, const float* second, uint16_t* dst);
  // The same of rows that are in bfloat16.
  void (*join_pair)(int64_t columns, const uint16_t* first, const uint16_t* second, uint16_t* dst);
};

// Weights kept in bfloat16, for every processor: widened to float as they are read, so that no copy is needed.
struct BFloat16Weights {
  // C [m, n] (+)= A [m, k] B [k, n]
  void (*gemm)(int64_t m, int64_t n, int64_t k, Rows<const float> a, Rows<const uint16_t> b, Rows<float> c,
               bool accumulate);
  // C [m, n] (+)= A [m, k] W^T for W [n, k]: for few rows
  void (*gemm_nt)(int64_t m, int64_t n, int64_t k, Rows<const float> a, Rows<const uint16_t> w, Rows<float> c,
                  bool accumulate);
  void (*widen)(int64_t rows, int64_t columns, Rows<const uint16_t> src, Rows<float> dst);
  // To the nearest, ties to even; NaN stays NaN.
  void (*round)(int64_t rows, int64_t columns, Rows<const float> src, Rows<uint16_t> dst);
};

struct InstructionSet {
  const char* name;
  bool (*supported)();
  const BFloat16Kernels* bfloat16;  // or null
  const Kernels<float>* f32;
  const Kernels<double>* f64;
  const BFloat16Weights* bfloat16_weights;
};

extern const InstructionSet avx512_set, avx2_set, baseline_set;
extern const BFloat16Kernels avx512_bf16_kernels;

// The sets compiled in, best first; the last one runs everywhere.
extern const InstructionSet* const kInstructionSets[];
extern const int kInstructionSetCount;

// The best set of this processor, or the one that RNNEXT_ISA names. Throws when that one is unknown or cannot run here.
const InstructionSet& instruction_set();

template <class T>
const Kernels<T>& kernels();

const BFloat16Weights& bfloat16_weights();

// Of the instruction set in use; null where the processor has none.
const BFloat16Kernels* bfloat16_kernels();

}  // namespace rnnext
