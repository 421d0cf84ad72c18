#include <deque>
#include <optional>

#include "cuda/memory.h"
#include "cuda/noise.h"
#include "cuda/persistent_run.h"
#include "cuda/registry.h"
#include "cuda/scan.h"
#include "cuda/weight_operands.h"
#include "engine/scan.h"
#include "engine/step.h"

namespace rnnext::cuda {
namespace {

// The pieces of work that engine/scan.h asks for. A step is a product by cuBLAS and a kernel for each stage, or a run of
// steps is one persistent kernel.
template <class T>
class Forward : ForwardBuffers<T> {
 public:
  explicit Forward(const ScanForward<T>& params)
      : ForwardBuffers<T>(params.shape), p_(params), functions_(cell_named<T>(cell_.name)) {
    this->each(shape_, p_.steps, [&](T** buffer, int64_t count) { arena_.add(buffer, count); });
    const int64_t rows = p_.steps.most_rows_in_a_block();
    for (int s = 0; s < cell_.streams; ++s) x_.emplace_back(arena_, p_.operands, rows, shape_.C);
    h_.emplace(arena_, p_.operands, p_.steps.N, shape_.state_width(0));
    for (int k = 0; k < cell_.products; ++k) {
      operand_.emplace_back(arena_, p_.operands, p_.steps.N, shape_.width(cell_.product[k].from));
    }
    if constexpr (std::is_same_v<T, float>) {
      persistent_.emplace(p_, functions_.persistent, true, PersistentRun::any(p_.sequence), arena_);
    }
    arena_.allocate();
    params_of(p_, params_);
  }

  void begin() {
    for (int s = 0; s < cell_.streams; ++s) {
      combine_biases(shape_, p_.w[s].b_ih, p_.w[s].b_hh, this->bias[s], stream_);
    }
    weights_.prepare(p_.w, true, !persists(), stream_);
    for (int k = 0; k < cell_.all_states(); ++k) {
      const int64_t count = p_.steps.N * shape_.state_width(k);
      p_.h0[k] ? copy(p_.state[k], p_.h0[k], count * sizeof(T), stream_)
               : clear(p_.state[k], count * sizeof(T), stream_);
    }
    expect_noise(p_, this->noise, stream_);
    if (persistent_) persistent_->begin(stream_);
  }

  // Of two streams, the second's result is W dx + dW x; so it is with the products of a step.
  void project_input(int64_t block) {
    const Range rows = p_.steps.rows_of(block);
    first_row_ = rows.begin;
    for (int source = cell_.streams - 1; source >= 0; --source) {
      const Matrix x = x_[source].of(p_.x[source].from(rows.begin), rows.size(), stream_);
      for (int target = source; target < cell_.streams; ++target) {
        gemm<T>(x_[source].type(), rows.size(), shape_.gate_columns(), shape_.C, x,
                transposed(weights_.ih(target - source)), {this->x_part[target], shape_.gate_columns()},
                source != target);
      }
    }
    draw_noise(p_, block, this->noise, stream_);
  }

  void keep_checkpoint(int64_t segment) {
    const Rows<T> kept = p_.checkpoints.from(segment * p_.steps.N);
    int64_t column = 0;
    for (int k = 0; k < cell_.all_states(); ++k) {
      const int64_t width = shape_.state_width(k);
      copy_rows<T>(p_.steps.N, width, {p_.state[k], width}, kept.from(0, column), stream_);
      column += width;
    }
  }

  void run(Range steps) {
    if (persists()) return run_persistent(steps);
    p_.steps.each(steps, false, [&](int64_t t) { step(t); });
  }

 private:
  bool persists() const { return persistent_ && *persistent_; }

  void run_persistent(Range steps) const {
    if constexpr (std::is_same_v<T, float>) {
      const StepForward<T> step = forward_step<T>(p_, *this, 0, 0, {0, p_.steps.N}, {0, shape_.H()}, params_);
      persistent_->each(steps, first_row_, stream_,
                        [&](const PersistentScan& scan) { persistent_->kernels().forward(step, scan, stream_); });
    }
  }

  void step(int64_t t) {
    const int64_t alive = p_.steps.rows(t);
    for (int i = 0; i < cell_.forward_stages; ++i) {
      if (i == 0 && cell_.recurrent_gates()) recurrent(alive);
      for (int k = 0; k < cell_.products; ++k) {
        if (cell_.product[k].before == i) product(k, alive);
      }
      const Range units{0, shape_.width(cell_.forward[i].width)};
      const int64_t row = p_.steps.first(t) - first_row_;
      functions_.forward[i](forward_step<T>(p_, *this, row, t, {0, alive}, units, params_), stream_);
    }
    for (int k = 0; k < cell_.all_states(); ++k) {
      if (!p_.sequence[k]) continue;
      copy_rows<T>(alive, shape_.state_width(k), state(k), p_.sequence[k].from(p_.steps.first(t)), stream_);
    }
  }

  void recurrent(int64_t alive) {
    const int64_t H = shape_.H(), heads = shape_.heads, width = shape_.head_width(), block = H / heads;
    for (int source = cell_.streams - 1; source >= 0; --source) {
      const Matrix h = h_->of(state(source * cell_.states.count), alive, stream_);
      for (int target = source; target < cell_.streams; ++target) {
        const bool accumulate = source != target;
        const Rows<T> r{this->r_part[target], shape_.recurrent_columns()};
        if (heads == 1) {
          gemm<T>(h_->type(), alive, shape_.recurrent_columns(), width, h, transposed(weights_.hh(target - source)), r,
                  accumulate);
          continue;
        }
        for (int g = 0; g < cell_.recurrent_gates(); ++g) {
          const Matrix w = weights_.hh(target - source, g * H);
          gemm<T>(h_->type(), alive, block, width, h, transposed(w), r.from(0, g * H), accumulate,
                  {heads, width, block * w.stride, block});
        }
      }
    }
  }

  void product(int k, int64_t alive) {
    const Product& product = cell_.product[k];
    const int64_t to = shape_.width(product.to), from = shape_.width(product.from);
    for (int source = cell_.streams - 1; source >= 0; --source) {
      const Rows<const T> rows = product.state >= 0
                                     ? state(source * cell_.states.count + product.state)
                                     : Rows<const T>{this->values + this->value_layout.offset[product.value[source]],
                                                     this->value_layout.columns};
      const Matrix operand = operand_[k].of(rows, alive, stream_);
      for (int target = source; target < cell_.streams; ++target) {
        const int64_t column = this->product_layout.offset[target * cell_.products + k];
        gemm<T>(operand_[k].type(), alive, to, from, operand, transposed(weights_.own(target - source, product.matrix)),
                {this->product_values + column, this->product_layout.columns}, source != target);
      }
    }
  }

  Rows<const T> state(int k) const { return {p_.state[k], shape_.state_width(k)}; }

  const ScanForward<T>& p_;
  const Shape& shape_ = p_.shape;
  const CellShape& cell_ = *shape_.cell;
  const Cell<T>& functions_;
  const Stream stream_ = current_stream();
  Arena arena_;
  WeightOperands<T> weights_{arena_, shape_, p_.operands};
  std::deque<Operand<T>> x_, operand_;  // which do not move
  std::optional<Operand<T>> h_;
  std::optional<PersistentRun> persistent_;  // of float32
  const T* params_[kMaxParams];
  int64_t first_row_ = 0;
};

}  // namespace

template <class T>
void scan_forward(const ScanForward<T>& params) {
  Forward<T> forward(params);
  rnnext::scan_forward(forward, params.steps);
}

template void scan_forward<float>(const ScanForward<float>&);
template void scan_forward<double>(const ScanForward<double>&);

}  // namespace rnnext::cuda
