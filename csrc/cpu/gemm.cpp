#include "cpu/gemm.h"

#include <type_traits>

#include "cpu/kernels.h"

namespace rnnext::cpu {

namespace {

// Rows in memory that stays with the thread.
template <class T>
Rows<T> scratch(int64_t rows, int64_t columns) {
  thread_local std::vector<T> memory;
  if (static_cast<int64_t>(memory.size()) < rows * columns) memory.resize(rows * columns);
  return {memory.data(), columns};
}

// Rows of an odd number of columns, each with a zero after it.
void copy_even(int64_t rows, int64_t columns, Rows<const BFloat16> src, Rows<BFloat16> dst) {
  for (int64_t i = 0; i < rows; ++i) *std::copy_n(src[i], columns, dst[i]) = 0;
}

// Pairs of bfloat16 move as floats.
Rows<const float> pairs(Rows<const BFloat16> values) {
  return {reinterpret_cast<const float*>(values.data), values.stride / 2};
}

}  // namespace

template <class T>
void gemm_tn(int64_t m, int64_t n, int64_t k, Rows<const T> a, Rows<const T> b, Rows<T> c, bool accumulate) {
  kernels<T>().gemm_tn(m, n, k, a, b, c, accumulate);
}

void gemm_tn(int64_t m, int64_t n, int64_t k, const BFloat16* a, int64_t a_width, const BFloat16* b, int64_t b_width,
             Rows<float> c, bool accumulate) {
  bfloat16_kernels()->gemm_tn(m, n, k / 2, pairs({a, 2 * a_width}), pairs({b, 2 * b_width}), c, accumulate);
}

template <class T>
bool has_bfloat16() {
  return std::is_same_v<T, float> && bfloat16_kernels();
}

template <class T>
RightMatrix<T>::RightMatrix(int64_t depth, const std::vector<Range>& pieces, Packing packing, Blocks blocks)
    : depth_(depth), columns_(pieces.back().end), operand_columns_(depth * blocks.count), packing_(packing) {
  const int64_t width = packing == Packing::kInPlace ? kPanelWidthInPlace : kPanelWidth;
  const int64_t block = blocks.count == 1 ? columns_ : blocks.period / blocks.count;
  for (const Range& piece : pieces) {
    first_panel_.push_back(panels_.size());
    for (int64_t c = piece.begin, end; c < piece.end; c = end) {
      end = panel_end(c, std::min(piece.end, (c / block + 1) * block), width);
      panels_.push_back({{c, end}, blocks.count == 1 ? 0 : c % blocks.period / block * depth});
    }
  }
  first_panel_.push_back(panels_.size());
}

template <class T>
void RightMatrix<T>::pack(const Team& team, const Source<T>& w, bool transposed, T* buffer) {
  if (team.rank == 0) {
    w_ = w;
    transposed_ = transposed;
    buffer_ = buffer;
  }
  if (packing_ == Packing::kInPlace) return;
  // As the weights lie in memory: by rows of w, which belong to one panel or to all.
  if (transposed) {
    const Range mine = team.share(panels_.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) pack_transposed(w, buffer, panels_[i].columns);
  } else {
    const Range mine = team.share(depth_, 2);
    for (int64_t k = mine.begin; k < mine.end; k += 2) pack_two_rows(w, buffer, k);
  }
}

// A panel of w^T, for w [columns, depth].
template <class T>
void RightMatrix<T>::pack_transposed(const Source<T>& w, T* buffer, Range columns) const {
  const int64_t width = columns.size();
  const Source<T> part = w.from(columns.begin);
  Rows<const T> values = part.values;
  int64_t depth = depth_;
  if constexpr (std::is_same_v<T, float>) {
    if (packing_ == Packing::kBFloat16) {  // pairs of values, moved as one
      Rows<const BFloat16> rows = part.bfloat16;
      if (!rows || rows.stride % 2) {
        const Rows<BFloat16> rounded = scratch<BFloat16>(width, even(depth_));
        rows ? copy_even(width, depth_, rows, rounded)
             : bfloat16_kernels()->round_rows(width, depth_, part.values, rounded);
        rows = rounded;
      }
      depth = even(depth_) / 2;
      values = {reinterpret_cast<const T*>(rows.data), rows.stride / 2};
    } else if (part.bfloat16) {
      const Rows<T> widened = scratch<T>(width, depth_);
      bfloat16_weights().widen(width, depth_, part.bfloat16, widened);
      values = widened;
    }
  }
  kernels<T>().transpose(width, depth, values, {buffer + columns.begin * depth, width});
}

// Rows k and k + 1, where there is one, of w [depth, columns] in all panels.
template <class T>
void RightMatrix<T>::pack_two_rows(const Source<T>& w, T* buffer, int64_t k) const {
  const int64_t rows = std::min<int64_t>(2, depth_ - k);
  for (const Panel& panel : panels_) {
    const int64_t begin = panel.columns.begin, width = panel.columns.size();
    const Source<T> part = w.from(k, begin);
    if constexpr (std::is_same_v<T, float>) {
      if (packing_ == Packing::kBFloat16) {
        auto* pairs = reinterpret_cast<BFloat16*>(buffer + begin * even(depth_) / 2 + k / 2 * width);
        if (part.bfloat16) {
          bfloat16_kernels()->join_pair(width, part.bfloat16[0], rows == 2 ? part.bfloat16[1] : nullptr, pairs);
        } else {
          bfloat16_kernels()->round_pair(width, part.values[0], rows == 2 ? part.values[1] : nullptr, pairs);
        }
        continue;
      }
    }
    const Rows<T> target{buffer + begin * depth_ + k * width, width};
    if constexpr (std::is_same_v<T, float>) {
      if (part.bfloat16) {
        bfloat16_weights().widen(rows, width, part.bfloat16, target);
        continue;
      }
    }
    for (int64_t i = 0; i < rows; ++i) std::copy_n(part.values[i], width, target[i]);
  }
}

template <class T>
template <class Left>
void RightMatrix<T>::panel_product(int64_t rows, Rows<const Left> a, Range depths, Rows<T> c, bool accumulate,
                                   const Panel& where) const {
  const Range& panel = where.columns;
  const Rows<T> target = c.from(0, panel.begin);
  a = a.from(0, where.operand);
  if (depths.size() == 0) {  // no input features
    for (int64_t i = 0; i < rows && !accumulate; ++i) std::fill_n(target[i], panel.size(), T(0));
    return;
  }
  if constexpr (std::is_same_v<Left, T>) {
    if (packing_ == Packing::kInPlace && transposed_) {
      const Source<T> w = w_.from(panel.begin, depths.begin);
      if constexpr (std::is_same_v<T, float>) {
        if (w.bfloat16) {
          return bfloat16_weights().gemm_nt(rows, panel.size(), depths.size(), a, w.bfloat16, target, accumulate);
        }
      }
      return kernels<T>().gemm_nt(rows, panel.size(), depths.size(), a, w.values, target, accumulate);
    }
  }
  const int64_t size = std::is_same_v<Left, T> ? depths.size() : even(depths.size());
  const int64_t blocks = (size + kDepthBlock - 1) / kDepthBlock, step = even((size + blocks - 1) / blocks);
  for (int64_t k = 0; k < size; k += step) {
    const int64_t depth = std::min(step, size - k);
    const bool adds = accumulate || k > 0;
    if constexpr (std::is_same_v<Left, T>) {
      const bool packed = packing_ == Packing::kPacked;
      if constexpr (std::is_same_v<T, float>) {
        if (!packed && w_.bfloat16) {
          const Rows<const BFloat16> b = w_.bfloat16.from(depths.begin + k, panel.begin);
          bfloat16_weights().gemm(rows, panel.size(), depth, a.from(0, k), b, target, adds);
          continue;
        }
      }
      const Rows<const T> b =
          packed ? Rows<const T>{buffer_ + panel.begin * depth_, panel.size()} : w_.values.from(0, panel.begin);
      kernels<T>().gemm(rows, panel.size(), depth, a.from(0, k), b.from(depths.begin + k), target, adds);
    } else {
      const T* b = buffer_ + panel.begin * even(depth_) / 2 + (depths.begin + k) / 2 * panel.size();
      bfloat16_kernels()->gemm(rows, panel.size(), depth / 2, pairs(a.from(0, k)), {b, panel.size()}, target, adds);
    }
  }
}

template <class T>
void RightMatrix<T>::multiply(int64_t rows, Rows<const T> a, Range depths, Rows<T> c, bool accumulate,
                              int64_t first_piece, int64_t last_piece) const {
  const int64_t first = first_panel_[first_piece], last = first_panel_[last_piece];
  if constexpr (std::is_same_v<T, float>) {
    if (packing_ == Packing::kBFloat16) {
      for (int64_t r = 0; r < rows; r += kRowChunk) {
        const int64_t count = std::min(kRowChunk, rows - r);
        const Rows<const BFloat16> rounded = this->rounded({{r, r + count}}, a, depths);
        for (int64_t i = first; i < last; ++i) {
          panel_product(count, rounded, depths, c.from(r), accumulate, panels_[i]);
        }
      }
      return;
    }
  }
  if (first == last) return;
  if (rows == 1 && packing_ == Packing::kInPlace && operand_columns_ == depth_) {  // it has no use for panels
    return panel_product(1, a, depths, c, accumulate, {columns_of(first, last), 0});
  }
  for (int64_t i = first; i < last; ++i) {
    for (int64_t r = 0; r < rows; r += kRowChunk) {
      panel_product(std::min(kRowChunk, rows - r), a.from(r), depths, c.from(r), accumulate, panels_[i]);
    }
  }
}

// Chunks of rows from one range after the other: products with as many rows as others have, however few are in a range.
template <class T>
void RightMatrix<T>::multiply(const std::vector<Range>& ranges, Apart apart, Rows<const T> a, Rows<T> c,
                              bool accumulate) const {
  std::vector<Range> some;
  Range together{0, 0};
  const auto multiply = [&] {
    chunk_product(some, together, apart, a, c, accumulate);
    some.clear();
    together.begin = together.end;
  };
  for (Range range : ranges) {
    while (range.size() > 0) {
      const int64_t count = std::min(range.size(), kRowChunk - together.size());
      some.push_back({range.begin, range.begin + count});
      range.begin += count;
      together.end += count;
      if (together.size() == kRowChunk) multiply();
    }
  }
  if (together.size() > 0) multiply();
}

template <class T>
void RightMatrix<T>::chunk_product(const std::vector<Range>& ranges, Range together, Apart apart, Rows<const T> a,
                                   Rows<T> c, bool accumulate) const {
  const int64_t rows = together.size(), a_row = apart == Apart::kA ? ranges[0].begin : together.begin;
  const bool copies_a = apart == Apart::kA && ranges.size() > 1, copies_c = apart == Apart::kC && ranges.size() > 1;
  Rows<T> into = c.from(apart == Apart::kC ? ranges[0].begin : together.begin);
  const auto each_row = [&](auto work) {
    int64_t i = 0;
    for (const Range& range : ranges) {
      for (int64_t row = range.begin; row < range.end; ++row) work(row, i++);
    }
  };
  if (copies_c) {
    into = scratch<T>(rows, columns_);
    if (accumulate) each_row([&](int64_t row, int64_t i) { std::copy_n(c[row], columns_, into[i]); });
  }
  const Range depths{0, depth_};
  const auto multiply = [&](auto left) {
    for (const Panel& panel : panels_) panel_product(rows, left, depths, into, accumulate, panel);
  };
  if (packing_ == Packing::kBFloat16) {
    if constexpr (std::is_same_v<T, float>) {
      multiply(rounded(apart == Apart::kA ? ranges : std::vector<Range>{together}, a, depths));
    }
  } else if (copies_a) {
    const Rows<T> copy = scratch<T>(rows, depth_);
    each_row([&](int64_t row, int64_t i) { std::copy_n(a[row], depth_, copy[i]); });
    multiply(Rows<const T>(copy));
  } else {
    multiply(a.from(a_row));
  }
  if (copies_c) each_row([&](int64_t row, int64_t i) { std::copy_n(into[i], columns_, c[row]); });
}

template <class T>
void RightMatrix<T>::multiply(const Team& team, int64_t rows, Rows<const T> a, Rows<T> c, bool accumulate) const {
  const int64_t chunks = (rows + kRowChunk - 1) / kRowChunk, panels = panels_.size();
  const Range depths{0, depth_};
  if constexpr (std::is_same_v<T, float>) {
    if (packing_ == Packing::kBFloat16) {  // rows after rows, so that each chunk is rounded once
      const Range mine = team.share(chunks * panels);
      Rows<const BFloat16> rounded;
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        const int64_t r = i / panels * kRowChunk, count = std::min(kRowChunk, rows - r);
        if (i == mine.begin || i % panels == 0) rounded = this->rounded({{r, r + count}}, a, depths);
        panel_product(count, rounded, depths, c.from(r), accumulate, panels_[i % panels]);
      }
      return;
    }
  }
  const int64_t first = item_at(rows * columns_ * team.rank / team.size, rows);
  const int64_t last = item_at(rows * columns_ * (team.rank + 1) / team.size, rows);
  for (int64_t i = first; i < last; ++i) {
    const int64_t r = i % chunks * kRowChunk;
    panel_product(std::min(kRowChunk, rows - r), a.from(r), depths, c.from(r), accumulate, panels_[i / chunks]);
  }
}

// Chunks of rows of one panel after the other are items of unequal size: the one that begins nearest after `work`
// values of C.
template <class T>
int64_t RightMatrix<T>::item_at(int64_t work, int64_t rows) const {
  const int64_t chunks = (rows + kRowChunk - 1) / kRowChunk;
  int64_t panel = 0;
  const int64_t panels = panels_.size();
  while (panel < panels && panels_[panel].columns.end * rows <= work) ++panel;
  if (panel == panels) return panels * chunks;
  const int64_t chunk = kRowChunk * panels_[panel].columns.size();
  return panel * chunks + (work - panels_[panel].columns.begin * rows + chunk / 2) / chunk;
}

// Rows of A in bfloat16, one range after the other, in memory of the thread's own.
template <class T>
Rows<const BFloat16> RightMatrix<T>::rounded(const std::vector<Range>& rows, Rows<const T> a, Range depths) const {
  const int64_t columns = std::max(depths.size(), operand_columns_ > depth_ ? operand_columns_ : 0);
  int64_t count = 0;
  for (const Range& range : rows) count += range.size();
  const Rows<BFloat16> result = scratch<BFloat16>(count, even(columns));
  if constexpr (std::is_same_v<T, float>) {
    int64_t first = 0;
    for (const Range& range : rows) {
      bfloat16_kernels()->round_rows(range.size(), columns, a.from(range.begin), result.from(first));
      first += range.size();
    }
  }
  return result;
}

template void gemm_tn<float>(int64_t, int64_t, int64_t, Rows<const float>, Rows<const float>, Rows<float>, bool);
template void gemm_tn<double>(int64_t, int64_t, int64_t, Rows<const double>, Rows<const double>, Rows<double>, bool);
template bool has_bfloat16<float>();
template bool has_bfloat16<double>();
template class RightMatrix<float>;
template class RightMatrix<double>;

}  // namespace rnnext::cpu
