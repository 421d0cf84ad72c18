#include <optional>

#include "cuda/memory.h"
#include "cuda/noise.h"
#include "cuda/persistent_run.h"
#include "cuda/registry.h"
#include "cuda/scan.h"
#include "cuda/weight_gradients.h"
#include "cuda/weight_operands.h"
#include "engine/scan.h"
#include "engine/step.h"

namespace rnnext::cuda {
namespace {

template <class T>
class Backward : BackwardBuffers<T> {
 public:
  explicit Backward(const ScanBackward<T>& params)
      : BackwardBuffers<T>(params.shape),
        p_(params),
        functions_(cell_named<T>(cell_.name)),
        weight_gradients_(p_, arena_, stream_) {
    this->each(shape_, p_.steps, [&](T** buffer, int64_t count) { arena_.add(buffer, count); });
    const int64_t rows = p_.steps.most_rows_in_a_block(), N = p_.steps.N;
    da_x_.emplace(arena_, p_.operands, rows, shape_.gate_columns());
    int64_t widest = cell_.slots() * shape_.H();
    for (int k = 0; k < cell_.products; ++k) widest = std::max(widest, shape_.width(cell_.product[k].to));
    da_h_.emplace(arena_, p_.operands, N, widest);
    if constexpr (std::is_same_v<T, float>) {
      persistent_.emplace(p_, functions_.persistent, false, PersistentRun::any(p_.dsequence), arena_);
    }
    arena_.allocate();
    params_of(p_, params_);
  }

  void begin() {
    clear(this->zeros, this->widest * sizeof(T), stream_);
    weights_.prepare(p_.w, bool(p_.dx[0]), !persists(), stream_);
    expect_noise(p_, this->noise, stream_);
    weight_gradients_.begin();
    if (persistent_) persistent_->begin(stream_);
  }

  void begin_block(int64_t block) {
    first_row_ = p_.steps.rows_of(block).begin;
    draw_noise(p_, block, this->noise, stream_);
  }

  void run(Range steps) {
    if (persists()) return run_persistent(steps);
    p_.steps.each(steps, true, [&](int64_t t) { step(t); });
  }

  // dx = da_x W_ih. Of two streams, the result's gradient G and its tangent's Gt give W^T G + dW^T Gt to x, and W^T Gt to
  // dx; so it is with the products of a step.
  void input_gradient(int64_t block) {
    if (!p_.dx[0]) return;
    const Range rows = p_.steps.rows_of(block);
    for (int source = 0; source < cell_.streams; ++source) {
      const Matrix da = da_x_->of(gradients_from(source, 0), rows.size(), stream_);
      for (int target = 0; target <= source; ++target) {
        gemm<T>(da_x_->type(), rows.size(), shape_.C, shape_.gate_columns(), da, weights_.ih(source - target),
                p_.dx[target].from(rows.begin), p_.accumulate_dx || source != target);
      }
    }
  }

  void weight_gradients(int64_t block, bool first) {
    weight_gradients_.add_block(block, {this->gradients, shape_.gradients.columns}, first && !p_.accumulate_dw);
  }

 private:
  bool persists() const { return persistent_ && *persistent_; }

  void run_persistent(Range steps) const {
    if constexpr (std::is_same_v<T, float>) {
      const StepBackward<T> step = backward_step<T>(p_, *this, 0, 0, {0, p_.steps.N}, {0, shape_.H()}, false, params_);
      InitialStates initial{{}, p_.steps.scanned};
      for (int k = 0; k < cell_.states.count; ++k) initial.rows[k] = step.state[k];
      persistent_->each(steps, first_row_, stream_, [&](const PersistentScan& scan) {
        persistent_->kernels().backward(step, scan, initial, stream_);
      });
    }
  }

  void step(int64_t t) {
    const int64_t alive = p_.steps.rows(t), continued = std::min(alive, p_.steps.continued(t));
    const int stages = cell_.backward_stages;
    // Gradients of the states after this step that come from their sequences.
    for (int k = 0; k < cell_.all_states(); ++k) {
      if (!p_.dsequence[k]) continue;
      add_rows<T>(alive, shape_.state_width(k), p_.dsequence[k].from(p_.steps.first(t)), dstate(k), stream_);
    }
    for (int i = 0; i <= stages; ++i) {
      for (int k = 0; k < cell_.products; ++k) {
        const Product& product = cell_.product[k];
        if ((product.state >= 0 ? stages : product.returns) == i) operand_gradient(k, t, alive);
      }
      if (i == stages) break;
      const Range units{0, shape_.width(cell_.backward[i].width)};
      // Sequences that began before t find their last state among the outputs, the others at the initial state.
      for (const bool continues : {true, false}) {
        const Range some = continues ? Range{0, continued} : Range{continued, alive};
        if (!some.size()) continue;
        const int64_t row = p_.steps.first(t) - first_row_ + some.begin;
        functions_.backward[i](backward_step<T>(p_, *this, row, t, some, units, continues, params_), stream_);
      }
    }
    if (cell_.recurrent_gates()) recurrent(t, alive);
  }

  // What reaches the operand of a product of the cell's own.
  void operand_gradient(int k, int64_t t, int64_t alive) {
    const Product& product = cell_.product[k];
    const int64_t to = shape_.width(product.to), from = shape_.width(product.from);
    const int64_t row = p_.steps.first(t) - first_row_;
    const bool of_state = product.state >= 0;
    for (int source = 0; source < cell_.streams; ++source) {
      const Matrix gradient = da_h_->of(gradients_from(source, cell_.slots() + k).from(row), alive, to, stream_);
      for (int target = 0; target <= source; ++target) {
        const Rows<T> into = of_state
                                 ? dstate(target * cell_.states.count + product.state)
                                 : Rows<T>{this->operands + this->operand_layout.offset[target * cell_.products + k],
                                           this->operand_layout.columns};
        gemm<T>(da_h_->type(), alive, from, to, gradient, weights_.own(source - target, product.matrix), into,
                of_state || source != target);
      }
    }
  }

  // dh += dr W_hh. The recurrent part's slots are the summed ones and the last ones.
  void recurrent(int64_t t, int64_t alive) {
    const int64_t H = shape_.H(), heads = shape_.heads, width = shape_.head_width(), block = H / heads;
    const int64_t row = p_.steps.first(t) - first_row_;
    for (int source = 0; source < cell_.streams; ++source) {
      const Matrix all = da_h_->of(gradients_from(source, 0).from(row), alive, cell_.slots() * H, stream_);
      for (int target = 0; target <= source; ++target) {
        const Rows<T> dh = dstate(target * cell_.states.count);
        const int w = source - target;
        const auto add = [&](int gate, int gates, int slot) {
          if (heads == 1) {
            gemm<T>(da_h_->type(), alive, width, gates * H, da_h_->at(all, 0, slot * H), weights_.hh(w, gate * H), dh,
                    true);
            return;
          }
          for (int g = 0; g < gates; ++g) {
            const Matrix rows = weights_.hh(w, (gate + g) * H);
            gemm<T>(da_h_->type(), alive, width, block, da_h_->at(all, 0, (slot + g) * H), rows, dh, true,
                    {heads, block, block * rows.stride, width});
          }
        };
        if (cell_.summed) add(0, cell_.summed, 0);
        if (cell_.apart) add(cell_.summed, cell_.apart, cell_.gates());
      }
    }
  }

  // Of stream `source`, from gradient k on.
  Rows<const T> gradients_from(int source, int k) const {
    return {this->gradients + shape_.gradients.offset[source * cell_.gradients() + k], shape_.gradients.columns};
  }
  Rows<T> dstate(int k) const { return {p_.dstate[k], shape_.state_width(k)}; }

  const ScanBackward<T>& p_;
  const Shape& shape_ = p_.shape;
  const CellShape& cell_ = *shape_.cell;
  const Cell<T>& functions_;
  const Stream stream_ = current_stream();
  Arena arena_;
  WeightGradients<T> weight_gradients_;
  WeightOperands<T> weights_{arena_, shape_, p_.operands};
  std::optional<Operand<T>> da_x_, da_h_;
  std::optional<PersistentRun> persistent_;  // of float32
  const T* params_[kMaxParams];
  int64_t first_row_ = 0;
};

}  // namespace

template <class T>
void scan_backward(const ScanBackward<T>& params) {
  Backward<T> backward(params);
  rnnext::scan_backward(backward, params.steps);
}

template void scan_backward<float>(const ScanBackward<float>&);
template void scan_backward<double>(const ScanBackward<double>&);

}  // namespace rnnext::cuda
