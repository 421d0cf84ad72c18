// Gradients of the weights: sums over the rows of a block of gradient times operand.
#pragma once

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "cpu/block_rows.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/partition.h"
#include "cpu/products.h"
#include "cpu/workspace.h"
#include "engine/step.h"

namespace rnnext::cpu {

// Values of a gradient that are made at once.
constexpr int64_t kTile = kRowChunk * kPanelWidth;

// What a matrix was multiplied by, cut into panels: [panel][rows][columns of the panel]; in bfloat16 with two rows side by
// side, as the right-hand sides in gemm.h.
template <class T>
struct Operand {
  enum Kind { kInput, kState, kSaved };
  Kind kind;
  int index;  // of the stream, of the state, of the saved value
  int64_t width;
  int64_t blocks;  // no panel straddles them
  T* panels = nullptr;

  bool operator==(const Operand& o) const { return kind == o.kind && index == o.index && blocks == o.blocks; }

  // Calls work(column, width) for the panels in columns begin .. end, with this depth. Shallow ones are wide.
  template <class Work>
  void each_panel(int64_t depth, int64_t begin, int64_t end, Work work) const {
    const int64_t block = width / blocks, most = depth <= kShallow ? kTile : kPanelWidth;
    for (int64_t c = begin, next; c < end; c = next) {
      next = panel_end(c, std::min(end, (c / block + 1) * block), most);
      work(c, next - c);
    }
  }
};

// One gradient of a matrix, and of its bias.
template <class T>
struct Target {
  int operand;            // -1: no matrix
  T* dw;                  // [samples, rows, columns], or null
  BFloat16* bfloat16_dw;  // the same, to be rounded as it is written; or null
  int64_t rows, columns;
  T* db;          // [samples, rows], or null
  int64_t shift;  // gradient column - row of dw
  bool first;     // nothing is there before the first block
};

// Columns of the gradients, and what is made of them.
template <class T>
struct GradientColumns {
  Range columns;
  int64_t block;  // rows of a target that see the same columns of the operand
  std::vector<Target<T>> targets;
};

// The rows of a block that one sample has: all, or from its first one on every `samples`-th.
struct SampleRows {
  int64_t sample, samples;
  int64_t count;  // in the block

  template <class T>
  Rows<T> of(Rows<T> block) const {
    return {block.data + sample * block.stride, samples * block.stride};
  }
};

// Of the sequences of some groups, by a team of at most so many threads.
template <class T>
class WeightGradients {
 public:
  WeightGradients(const ScanBackward<T>& params, const BackwardBuffers<T>& buffers, Range groups, int threads)
      : p_(params), b_(buffers), layout_(buffers.gradient_layout), groups_(groups), threads_(threads) {
    const CellShape& cell = *p_.shape.cell;
    for (int s = 0; s < cell.streams; ++s) {
      add_gates(s);
      for (int k = 0; k < cell.products; ++k) add_product(s, cell.product[k], cell.slots() + k);
    }
    std::erase_if(columns_, [](const GradientColumns<T>& c) { return c.targets.empty() || c.columns.size() == 0; });
  }

  void add_buffers(const BlockRows& rows, Workspace<T>& workspace) {
    most_depth_ = depth_of(rows.most(groups_) / p_.samples);
    for (Operand<T>& operand : operands_) {
      workspace.add(&operand.panels, (bfloat16_ ? most_depth_ / 2 : most_depth_) * operand.width);
    }
    workspace.add(&rounded_, bfloat16_ ? threads_ * kRowChunk * most_depth_ / 2 : 0);
    workspace.add(&unrounded_, writes_bfloat16() ? threads_ * kTile : 0);
  }

  // Before the first block; the threads do not meet after it.
  void begin(const Team& team, const BlockRows& rows) const {
    const Range sequences = rows.sequences(groups_);
    const Range mine = team.share(sequences.size() * b_.param_layout.columns);
    std::fill_n(b_.param_sums + sequences.begin * b_.param_layout.columns + mine.begin, mine.size(), T(0));
  }

  // Adds what a block gives. The threads do not meet after it.
  void add_block(const Team& team, const BlockRows& rows, bool first) const {
    const int64_t count = rows.of(groups_).size() / p_.samples;
    for (int64_t sample = 0; sample < p_.samples; ++sample) {
      if (sample > 0) team.sync();  // the panels may be written again
      add_sample(team, rows, {sample, p_.samples, count}, first);
    }
  }

 private:
  bool writes_bfloat16() const {
    const auto writes = [](const Target<T>& target) { return target.bfloat16_dw != nullptr; };
    return std::any_of(columns_.begin(), columns_.end(), [&](const GradientColumns<T>& c) {
      return std::any_of(c.targets.begin(), c.targets.end(), writes);
    });
  }

  int64_t depth_of(int64_t rows) const { return bfloat16_ ? even(rows) : rows; }

  void add_sample(const Team& team, const BlockRows& block, SampleRows rows, bool first) const {
    const int64_t depth = depth_of(rows.count);
    const Rows<const T> all{b_.gradients, layout_.columns}, gradients = rows.of(all.from(block.of(groups_).begin));
    for (const Operand<T>& operand : operands_) pack(team, operand, block, rows, depth);
    team.sync();
    BFloat16* rounded = reinterpret_cast<BFloat16*>(rounded_) + team.rank * kRowChunk * most_depth_;
    T* unrounded = unrounded_ + team.rank * kTile;
    const Range begin = rows_that_begin(block, rows);
    for (const GradientColumns<T>& c : columns_) {
      const Range mine = team.share(c.columns.size(), kUnitGrain);
      for (int64_t i = mine.begin, end; i < mine.end; i = end) {
        end = std::min({mine.end, i + kRowChunk, (i / c.block + 1) * c.block});
        add_chunk(c, {i, end}, gradients, rows, depth, begin, rounded, unrounded, first);
      }
    }
    add_params(team, block.sequences(groups_), rows, first);
  }

  int add(const Operand<T>& operand) {
    const auto found = std::find(operands_.begin(), operands_.end(), operand);
    if (found != operands_.end()) return found - operands_.begin();
    operands_.push_back(operand);
    return operands_.size() - 1;
  }

  bool first_into(const T* target) { return target && begun_.insert(target).second; }

  // Of stream s, the gradient of W_ih meets x; of the second stream, it also meets dx, and the tangent's meets x.
  void add_gates(int s) {
    const Shape& shape = p_.shape;
    const CellShape& cell = *shape.cell;
    const int64_t H = shape.H(), base = layout_.offset[s * cell.gradients()];
    const int64_t block = shape.heads > 1 ? H / shape.heads : layout_.columns;
    std::vector<Target<T>> inputs, hidden;
    for (int tangent = 0; tangent <= s; ++tangent) {
      const Weights<T>& dw = p_.dw[tangent];
      const Matrices<BFloat16>& bfloat16_dw = p_.bfloat16_dw[tangent];
      const bool wants_ih = dw.w_ih || bfloat16_dw.w_ih, wants_hh = dw.w_hh || bfloat16_dw.w_hh;
      const int source = s - tangent;
      T* db_ih = tangent == s ? dw.b_ih : nullptr;
      T* db_hh = tangent == s ? dw.b_hh : nullptr;
      if (wants_ih || db_ih) {
        const int operand = wants_ih ? add({Operand<T>::kInput, source, shape.C, 1}) : -1;
        inputs.push_back(
            {operand, dw.w_ih, bfloat16_dw.w_ih, shape.gate_columns(), shape.C, db_ih, base, first_into(dw.w_ih)});
      }
      if (wants_hh || db_hh) {
        const int state = source * cell.states.count;
        const int operand = wants_hh ? add({Operand<T>::kState, state, shape.state_width(state), shape.heads}) : -1;
        hidden.push_back({operand, dw.w_hh, bfloat16_dw.w_hh, shape.recurrent_columns(), shape.head_width(), db_hh,
                          base, first_into(dw.w_hh)});
      }
    }
    const int64_t summed = base + cell.summed * H, gates = base + cell.gates() * H;
    columns_.push_back({{base, summed}, block, inputs});
    columns_.back().targets.insert(columns_.back().targets.end(), hidden.begin(), hidden.end());
    columns_.push_back({{summed, gates}, block, inputs});
    for (Target<T>& target : hidden) target.shift = gates - cell.summed * H;
    columns_.push_back({{gates, gates + cell.apart * H}, block, hidden});
  }

  void add_product(int s, const Product& product, int k) {
    const Shape& shape = p_.shape;
    const int64_t base = layout_.offset[s * shape.cell->gradients() + k], from = shape.width(product.from);
    std::vector<Target<T>> targets;
    for (int tangent = 0; tangent <= s; ++tangent) {
      T* dw = p_.dw[tangent].matrix[product.matrix];
      BFloat16* bfloat16_dw = p_.bfloat16_dw[tangent].matrix[product.matrix];
      if (!dw && !bfloat16_dw) continue;
      const int source = s - tangent;
      const Operand<T> operand =
          product.state >= 0
              ? Operand<T>{Operand<T>::kState, source * shape.cell->states.count + product.state, from, 1}
              : Operand<T>{Operand<T>::kSaved, product.saved[source], from, 1};
      targets.push_back({add(operand), dw, bfloat16_dw, shape.width(product.to), from, nullptr, base, first_into(dw)});
    }
    columns_.push_back({{base, base + shape.width(product.to)}, layout_.columns, targets});
  }

  // Cuts rows of the operand, one after the other, into the panels; null is a row of zeros.
  class Cutter {
   public:
    Cutter(const Operand<T>& operand, int64_t depth, bool bfloat16)
        : operand_(operand), depth_(depth), bfloat16_(bfloat16) {}

    void cut(const T* row, int64_t k) {
      if (bfloat16_ && k % 2 == 0) {
        first_ = row;
        return;
      }
      operand_.each_panel(depth_, 0, operand_.width, [&](int64_t c, int64_t width) {
        const auto at = [c](const T* values) { return values ? values + c : nullptr; };
        if constexpr (std::is_same_v<T, float>) {
          if (bfloat16_) {
            BFloat16* panel = reinterpret_cast<BFloat16*>(operand_.panels) + c * depth_;
            return bfloat16_kernels()->round_pair(width, at(first_), at(row), panel + (k - 1) * width);
          }
        }
        T* target = operand_.panels + c * depth_ + k * width;
        row ? std::copy_n(row + c, width, target) : std::fill_n(target, width, T(0));
      });
    }

   private:
    const Operand<T>& operand_;
    const int64_t depth_;
    const bool bfloat16_;
    const T* first_ = nullptr;  // the row of an even k, which waits for the next
  };

  void pack(const Team& team, const Operand<T>& operand, const BlockRows& block, SampleRows rows, int64_t depth) const {
    const Range mine = team.share(depth, 2);
    Cutter cutter(operand, depth, bfloat16_);
    for (int64_t group = groups_.begin; group < groups_.end; ++group) {
      for (int64_t t = block.steps().begin; t < block.steps().end; ++t) {
        const Range alive = block.alive(group, t);
        const int64_t first = (block.at(group, t, alive.begin) - block.of(groups_).begin) / rows.samples;
        const Range some{std::max(mine.begin, first), std::min(mine.end, first + alive.size() / rows.samples)};
        if (!some.size()) continue;
        const auto [values, continued, initial] = values_in(operand, t);
        for (int64_t k = some.begin; k < some.end; ++k) {
          const int64_t n = alive.begin + (k - first) * rows.samples + rows.sample;
          cutter.cut(n < continued ? values[n] : initial[n], k);
        }
      }
    }
    for (int64_t k = std::max(mine.begin, rows.count); k < mine.end; ++k) cutter.cut(nullptr, k);
  }

  // What an operand was in step t: of the first sequences, and of those that began there, if it is a state.
  struct Values {
    Rows<const T> rows;
    int64_t continued;
    Rows<const T> initial;
  };
  Values values_in(const Operand<T>& operand, int64_t t) const {
    const int64_t first = p_.steps.first(t), continued = p_.steps.continued(t);
    switch (operand.kind) {
      case Operand<T>::kInput:
        return {p_.x[operand.index].from(first), p_.steps.N, {}};
      case Operand<T>::kSaved:
        return {p_.record.from(first, p_.shape.record.offset[operand.index]), p_.steps.N, {}};
      default: {
        Rows<const T> before;  // of the first step scanned there is none
        if (continued > 0) before = states_before(p_, operand.index, t, 0, true, b_.zeros);
        return {before, continued, states_before(p_, operand.index, t, 0, false, b_.zeros)};
      }
    }
  }

  // Of the rows of a sample in a block those of the first step, if it is there and they lie together: the first or the last.
  Range rows_that_begin(const BlockRows& block, SampleRows rows) const {
    const int64_t t = p_.steps.reverse ? block.steps().end - 1 : block.steps().begin;
    if (groups_.size() > 1 || p_.steps.continued(t) > 0) return {0, 0};
    const int64_t count = block.alive(groups_.begin, t).size() / rows.samples;
    return p_.steps.reverse ? Range{rows.count - count, rows.count} : Range{0, count};
  }

  // The depths that make a product with an operand, but for those at which it is zero: `begin`, if it is a state that
  // begins there. Gradients that are not finite make it NaN all the same.
  Range depths_of(const Operand<T>& operand, int64_t depth, SampleRows rows, Range begin, Rows<const T> gradients,
                  int64_t columns) const {
    const Range all{0, depth};
    if (operand.kind != Operand<T>::kState || p_.h0[operand.index] || !begin.size()) return all;
    T sums[kRowChunk];
    kernels<T>().column_sums(begin.size(), columns, gradients.from(begin.begin), sums, false);
    if (!std::all_of(sums, sums + columns, [](T sum) { return std::isfinite(sum); })) return all;
    if (begin.size() == rows.count) return {0, 0};
    return begin.begin > 0 ? Range{0, depth_of(begin.begin)} : Range{bfloat16_ ? begin.end / 2 * 2 : begin.end, depth};
  }

  // `chunk`: counted from the first of the columns.
  void add_chunk(const GradientColumns<T>& c, Range chunk, Rows<const T> gradients, SampleRows rows, int64_t depth,
                 Range first_step, BFloat16* rounded, T* unrounded, bool first_block) const {
    const int64_t begin = c.columns.begin + chunk.begin;
    gradients = gradients.from(0, begin);
    if constexpr (std::is_same_v<T, float>) {
      for (int64_t k = 0; bfloat16_ && k < rows.count; k += 2) {
        const T* second = k + 1 < rows.count ? gradients[k + 1] : nullptr;
        bfloat16_kernels()->round_pair(chunk.size(), gradients[k], second, rounded + k * chunk.size());
      }
    }
    for (const Target<T>& target : c.targets) {
      const int64_t row = rows.sample * target.rows + begin - target.shift;
      if (target.db) {
        kernels<T>().column_sums(rows.count, chunk.size(), gradients, target.db + row, !first_block);
      }
      if (target.operand < 0) continue;
      const Operand<T>& operand = operands_[target.operand];
      const int64_t column =
          target.columns == operand.width ? 0 : chunk.begin % p_.shape.H() / c.block * target.columns;
      const Range depths = depths_of(operand, depth, rows, first_step, gradients, chunk.size());
      operand.each_panel(depth, column, column + target.columns, [&](int64_t panel, int64_t width) {
        const auto multiply = [&](int64_t first, int64_t count, Rows<T> into, bool adds) {
          const T* values = operand.panels + panel * (bfloat16_ ? depth / 2 : depth);
          if constexpr (std::is_same_v<T, float>) {
            const auto* pairs = reinterpret_cast<const BFloat16*>(values);
            const BFloat16* left = rounded + depths.begin * chunk.size() + 2 * first;
            const BFloat16* right = pairs + depths.begin * width;
            if (bfloat16_) return gemm_tn(count, width, depths.size(), left, chunk.size(), right, width, into, adds);
          }
          const Rows<const T> right = Rows<const T>{values, width}.from(depths.begin);
          gemm_tn<T>(count, width, depths.size(), gradients.from(depths.begin, first), right, into, adds);
        };
        if constexpr (std::is_same_v<T, float>) {
          if (target.bfloat16_dw) {
            const Rows<BFloat16> into = Rows<BFloat16>{target.bfloat16_dw, target.columns}.from(row, panel - column);
            fetch(into, chunk.size(), width);
            const int64_t most = kTile / width;
            for (int64_t i = 0, count; i < chunk.size(); i += count) {
              count = std::min(most, chunk.size() - i);
              multiply(i, count, {unrounded, width}, false);
              bfloat16_weights().round(count, width, {unrounded, width}, into.from(i));
            }
            return;
          }
        }
        const Rows<T> into = Rows<T>{target.dw, target.columns}.from(row, panel - column);
        multiply(0, chunk.size(), into, !(first_block && target.first));
      });
    }
  }

  // From what the stages added up for each sequence in the block, which then begins anew.
  void add_params(const Team& team, Range sequences, SampleRows rows, bool first) const {
    const CellShape& cell = *p_.shape.cell;
    const int64_t count = sequences.size() / rows.samples;
    for (int k = 0; k < cell.all_params(); ++k) {
      T* target = p_.dw[k / cell.params.count].param[k % cell.params.count];
      if (!target) continue;
      const int64_t width = p_.shape.width(cell.param_width(k));
      const Range mine = team.share(width, kUnitGrain);
      const Rows<T> all{b_.param_sums, b_.param_layout.columns};
      const Rows<T> sums = rows.of(all.from(sequences.begin, b_.param_layout.offset[k] + mine.begin));
      kernels<T>().column_sums(count, mine.size(), Rows<const T>(sums), target + rows.sample * width + mine.begin,
                               !first);
      for (int64_t n = 0; n < count; ++n) std::fill_n(sums[n], mine.size(), T(0));
    }
  }

  const ScanBackward<T>& p_;
  const BackwardBuffers<T>& b_;
  const Layout layout_;
  const Range groups_;
  const int threads_;
  int64_t most_depth_ = 0;
  std::vector<Operand<T>> operands_;
  std::vector<GradientColumns<T>> columns_;
  std::set<const T*> begun_;
  const bool bfloat16_ = uses_bfloat16<T>(p_);
  T* rounded_ = nullptr;    // of each thread, a chunk of the gradients: [depth / 2][kRowChunk][2] of bfloat16
  T* unrounded_ = nullptr;  // of each thread, [kRowChunk, kPanelWidth]
};

}  // namespace rnnext::cpu
