#include "cpu/gemm.h"

#include <ATen/native/CPUBlas.h>

#include <type_traits>

#include "cpu/kernels.h"

namespace rnnext::cpu {

template <class T>
void gemm(int64_t m, int64_t n, int64_t k, Rows<const T> a, Rows<const T> b, Rows<T> c, bool accumulate) {
  if constexpr (std::is_same_v<T, float>) {
    if (instruction_set().has_brgemm) {
      return at::native::cpublas::brgemm(m, n, k, a.stride, b.stride, c.stride, accumulate, a.data, b.data, c.data);
    }
  }
  kernels<T>().gemm(m, n, k, a, b, c, accumulate);
}

template <class T>
RightMatrix<T>::RightMatrix(int64_t depth, const std::vector<Range>& pieces, bool packed, Blocks blocks)
    : depth_(depth), columns_(pieces.back().end), packed_(packed) {
  const int64_t block = blocks.count == 1 ? columns_ : blocks.period / blocks.count;
  for (const Range& piece : pieces) {
    first_panel_.push_back(panels_.size());
    for (int64_t c = piece.begin, end; c < piece.end; c = end) {
      end = std::min({piece.end, c + kPanelWidth, (c / block + 1) * block});
      panels_.push_back({{c, end}, blocks.count == 1 ? 0 : c % blocks.period / block * depth});
    }
  }
  first_panel_.push_back(panels_.size());
}

template <class T>
void RightMatrix<T>::pack(const Team& team, Rows<const T> w, bool transposed, T* buffer) {
  if (team.rank == 0) {
    w_ = w;
    transposed_ = transposed;
    buffer_ = buffer;
  }
  if (packed_) {
    const Range mine = team.share(panels_.size());
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const Range columns = panels_[i].columns;
      const Rows<T> panel{buffer + columns.begin * depth_, columns.size()};
      if (transposed) {
        kernels<T>().transpose(columns.size(), depth_, w.from(columns.begin), panel);
      } else {
        for (int64_t k = 0; k < depth_; ++k) std::copy_n(w[k] + columns.begin, columns.size(), panel[k]);
      }
    }
  }
}

template <class T>
void RightMatrix<T>::panel_product(int64_t rows, Rows<const T> a, Range depths, Rows<T> c, bool accumulate,
                                   const Panel& where) const {
  const Range& panel = where.columns;
  const Rows<T> target = c.from(0, panel.begin);
  a = a.from(0, where.operand);
  if (depths.size() == 0) {  // no input features
    for (int64_t i = 0; i < rows && !accumulate; ++i) std::fill_n(target[i], panel.size(), T(0));
    return;
  }
  if (!packed_ && transposed_) {
    return kernels<T>().gemm_transposed(rows, panel.size(), depths.size(), a, w_.from(panel.begin, depths.begin),
                                        target, accumulate);
  }
  const Rows<const T> b =
      packed_ ? Rows<const T>{buffer_ + panel.begin * depth_, panel.size()} : w_.from(0, panel.begin);
  const int64_t blocks = (depths.size() + kDepthBlock - 1) / kDepthBlock;
  const int64_t step = (depths.size() + blocks - 1) / blocks;
  for (int64_t k = depths.begin; k < depths.end; k += step) {
    gemm<T>(rows, panel.size(), std::min(step, depths.end - k), a.from(0, k - depths.begin), b.from(k), target,
            accumulate || k > depths.begin);
  }
}

template <class T>
void RightMatrix<T>::multiply(int64_t rows, Rows<const T> a, Range depths, Rows<T> c, bool accumulate,
                              int64_t first_piece, int64_t last_piece) const {
  for (int64_t i = first_panel_[first_piece]; i < first_panel_[last_piece]; ++i) {
    for (int64_t r = 0; r < rows; r += kRowChunk) {
      panel_product(std::min(kRowChunk, rows - r), a.from(r), depths, c.from(r), accumulate, panels_[i]);
    }
  }
}

template <class T>
void RightMatrix<T>::multiply(const Team& team, int64_t rows, Rows<const T> a, Rows<T> c, bool accumulate) const {
  const int64_t chunks = (rows + kRowChunk - 1) / kRowChunk;
  const Range mine = team.share(chunks * panels_.size());
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t r = i % chunks * kRowChunk;
    panel_product(std::min(kRowChunk, rows - r), a.from(r), {0, depth_}, c.from(r), accumulate, panels_[i / chunks]);
  }
}

template void gemm<float>(int64_t, int64_t, int64_t, Rows<const float>, Rows<const float>, Rows<float>, bool);
template void gemm<double>(int64_t, int64_t, int64_t, Rows<const double>, Rows<const double>, Rows<double>, bool);
template class RightMatrix<float>;
template class RightMatrix<double>;

}  // namespace rnnext::cpu
