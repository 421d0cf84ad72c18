// Gradients of the weights that each part of a team sums by itself, through all blocks.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "cpu/team.h"
#include "engine/step.h"

namespace rnnext::cpu {

// The first part sums where the gradients go, the others (and the first one, where the gradients are of bfloat16) in memory
// of their own, which stays with those of one dw from one scan to the next (`kept` in ScanBackward).
template <class T>
class PartSums {
 public:
  PartSums(const ScanBackward<T>& params, int64_t parts) : parts_(parts, params) {
    if (parts == 1) return;
    bool rounds = false;
    each_gradient(parts_[0], [&](T*& dw, BFloat16*& bfloat16_dw, int64_t count) {
      if (!dw && !bfloat16_dw) return;
      gradients_.push_back({&dw, bfloat16_dw, count, stride_});
      stride_ += (count + kLine - 1) / kLine * kLine;
      rounds |= bfloat16_dw != nullptr;
    });
    const int64_t first = rounds ? 0 : 1;
    std::shared_ptr<void>& kept = params.kept ? *params.kept : memory_;
    if (!kept) kept = std::make_shared<at::Tensor>(empty({(parts - first) * stride_}, at::empty({0}, dtype())));
    memory_ = kept;
    T* base = static_cast<at::Tensor*>(memory_.get())->template data_ptr<T>() - first * stride_;
    for (int64_t part = 0; part < parts; ++part) {
      auto gradient = gradients_.begin();
      each_gradient(parts_[part], [&](T*& dw, BFloat16*& bfloat16_dw, int64_t) {
        if (!dw && !bfloat16_dw) return;
        if (part > 0 || bfloat16_dw) dw = base + part * stride_ + gradient->offset;
        bfloat16_dw = nullptr;
        ++gradient;
      });
    }
    others_ = {base + stride_, stride_};
  }
  PartSums(const PartSums&) = delete;

  // The parameters of the scan, for a part: what it sums, and where.
  const ScanBackward<T>& of(int64_t part) const { return parts_[part]; }
  int64_t parts() const { return static_cast<int64_t>(parts_.size()); }

  // After the last call, when all parts are done.
  void add_up(const Team& team) const {
    for (const Gradient& gradient : gradients_) {
      const Range mine = team.share(gradient.count, kLine);
      T* sum = *gradient.dw + mine.begin;
      kernels<T>().column_sums(parts() - 1, mine.size(), others_.from(0, gradient.offset + mine.begin), sum, true);
      if constexpr (std::is_same_v<T, float>) {
        if (!gradient.bfloat16_dw) continue;
        bfloat16_weights().round(1, mine.size(), {sum, 0}, {gradient.bfloat16_dw + mine.begin, 0});
      }
    }
  }

 private:
  struct Gradient {
    T* const* dw;  // of the first part
    BFloat16* bfloat16_dw;
    int64_t count, offset;
  };
  static constexpr int64_t kLine = 64 / sizeof(T);

  static at::ScalarType dtype() { return c10::CppTypeToScalarType<T>::value; }

  template <class Work>
  static void each_gradient(ScanBackward<T>& p, Work work) {
    const Shape& shape = p.shape;
    const CellShape& cell = *shape.cell;
    BFloat16* none = nullptr;
    for (int s = 0; s < cell.streams; ++s) {
      Weights<T>& dw = p.dw[s];
      Matrices<BFloat16>& bfloat16_dw = p.bfloat16_dw[s];
      work(dw.w_ih, bfloat16_dw.w_ih, shape.gate_columns() * shape.C);
      work(dw.w_hh, bfloat16_dw.w_hh, shape.recurrent_columns() * shape.head_width());
      for (int m = 0; m < cell.matrices; ++m) {
        const Product& product = product_with(cell, m);
        work(dw.matrix[m], bfloat16_dw.matrix[m], shape.width(product.to) * shape.width(product.from));
      }
      work(dw.b_ih, none, shape.gate_columns());
      work(dw.b_hh, none, shape.recurrent_columns());
      for (int k = 0; k < cell.params.count; ++k) {
        work(dw.param[k], none, shape.width(cell.param_width(s * cell.params.count + k)));
      }
    }
  }

  std::vector<ScanBackward<T>> parts_;
  std::vector<Gradient> gradients_;
  int64_t stride_ = 0;  // of a part
  std::shared_ptr<void> memory_;
  Rows<const T> others_;  // [parts - 1, stride]
};

}  // namespace rnnext::cpu
