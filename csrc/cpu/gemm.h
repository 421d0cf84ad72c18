// Products with a matrix that many calls share.
//
// Float products may be of operands rounded to bfloat16, at twice the speed; sums stay in float. The right-hand side then
// has two rows side by side: [depth / 2][width][2], with zeros where the depth is odd.
#pragma once

#include <vector>

#include "cpu/team.h"
#include "engine/params.h"

namespace rnnext::cpu {

// So many rows of A stay in a cache while the panels of B pass.
constexpr int64_t kRowChunk = 64;
constexpr int64_t kPanelWidth = 64;
// Of a matrix that is read as it lies. A row of a narrow panel would be in another page each.
constexpr int64_t kPanelWidthInPlace = 256;
// A panel of B of this many rows stays in L2 beside the rows of A.
constexpr int64_t kDepthBlock = 1024;

// Columns are cut into panels of about equal width, `width` at most, at multiples of 16: the end of the one that begins at
// `begin`.
constexpr int64_t panel_end(int64_t begin, int64_t end, int64_t width = kPanelWidth) {
  constexpr int64_t grain = 16;
  const int64_t most = width / grain, grains = (end - begin + grain - 1) / grain, panels = (grains + most - 1) / most;
  return std::min(end, begin + (grains + panels - 1) / panels * grain);
}

// Columns in `count` blocks of equal width, again in each `period`: block i is multiplied by columns i * depth ..
// (i + 1) * depth of A. One block: a full matrix.
struct Blocks {
  int64_t period = 1, count = 1;
};

// Whether products in T can be of bfloat16 here.
template <class T>
bool has_bfloat16();

constexpr int64_t even(int64_t n) {
  return (n + 1) / 2 * 2;
}

// Weights as they lie: in T, or in bfloat16.
template <class T>
struct Source {
  Rows<const T> values;
  Rows<const BFloat16> bfloat16;

  Source from(int64_t row, int64_t column = 0) const {
    return values ? Source{values.from(row, column), {}} : Source{{}, bfloat16.from(row, column)};
  }
};

// How the right-hand side of products is kept.
enum class Packing { kInPlace, kPacked, kBFloat16 };

// The right-hand side B [depth, columns] of products C = A B, cut into panels of columns.
//
// Packed: each panel is stored contiguously, [depth][width]. In place: the weights are read as they lie, where the
// products have too few rows to repay the packing. In bfloat16, a part of the depth may only begin at an even row.
template <class T>
class RightMatrix {
 public:
  // `pieces`: ranges of columns that no panel may straddle; together they cover all columns in order.
  RightMatrix(int64_t depth, const std::vector<Range>& pieces, Packing packing, Blocks blocks = {});

  // Values of the buffer that pack() fills.
  int64_t buffer_size() const {
    if (packing_ == Packing::kBFloat16) return even(depth_) / 2 * columns_;
    return packing_ == Packing::kPacked ? depth_ * columns_ : 0;
  }

  // B = w^T for w [columns, depth], or B = w for w [depth, columns]. All threads of the team call it.
  void pack(const Team& team, const Source<T>& w, bool transposed, T* buffer);

  // C (+)= A B[depths, :] on the columns of pieces [first_piece, last_piece), by this thread alone; A has depths.size()
  // columns.
  void multiply(int64_t rows, Rows<const T> a, Range depths, Rows<T> c, bool accumulate, int64_t first_piece,
                int64_t last_piece) const;

  // C (+)= A B by this thread alone, where the rows of A, or those of C, are some ranges, and those of the other one lie
  // together.
  enum class Apart { kA, kC };
  void multiply(const std::vector<Range>& ranges, Apart apart, Rows<const T> a, Rows<T> c, bool accumulate) const;

  // C (+)= A B, shared out over the team; they do not meet after it.
  void multiply(const Team& team, int64_t rows, Rows<const T> a, Rows<T> c, bool accumulate) const;

  int64_t depth() const { return depth_; }
  int64_t pieces() const { return static_cast<int64_t>(first_panel_.size()) - 1; }
  Range columns(int64_t piece) const { return columns_of(first_panel_[piece], first_panel_[piece + 1]); }

 private:
  struct Panel {
    Range columns;
    int64_t operand;  // the first column of A
  };

  Range columns_of(int64_t first_panel, int64_t last_panel) const {
    if (first_panel == last_panel) return {0, 0};
    return {panels_[first_panel].columns.begin, panels_[last_panel - 1].columns.end};
  }
  void pack_transposed(const Source<T>& w, T* buffer, Range columns) const;
  void pack_two_rows(const Source<T>& w, T* buffer, int64_t k) const;
  // `Left`: T, or BFloat16
  template <class Left>
  void panel_product(int64_t rows, Rows<const Left> a, Range depths, Rows<T> c, bool accumulate,
                     const Panel& panel) const;
  void chunk_product(const std::vector<Range>& ranges, Range together, Apart apart, Rows<const T> a, Rows<T> c,
                     bool accumulate) const;
  Rows<const BFloat16> rounded(const std::vector<Range>& rows, Rows<const T> a, Range depths) const;
  int64_t item_at(int64_t work, int64_t rows) const;

  int64_t depth_, columns_, operand_columns_;
  Packing packing_;
  bool transposed_ = false;
  std::vector<Panel> panels_;
  std::vector<int64_t> first_panel_;  // [pieces + 1]
  Source<T> w_;
  T* buffer_ = nullptr;
};

// C [m, n] (+)= A^T B for A [k, m], B [k, n], on one thread.
template <class T>
void gemm_tn(int64_t m, int64_t n, int64_t k, Rows<const T> a, Rows<const T> b, Rows<T> c, bool accumulate);
// The same of bfloat16; k is even, a is [k / 2][a_width][2], b is [k / 2][b_width][2].
void gemm_tn(int64_t m, int64_t n, int64_t k, const BFloat16* a, int64_t a_width, const BFloat16* b, int64_t b_width,
             Rows<float> c, bool accumulate);

}  // namespace rnnext::cpu
