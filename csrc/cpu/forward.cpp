#include "cpu/products.h"
#include "cpu/registry.h"
#include "cpu/scan.h"
#include "engine/scan.h"
#include "engine/step.h"

namespace rnnext::cpu {
namespace {

// A product in a step: target (+)= operand * matrix^T.
template <class T>
struct StepProduct {
  int before;  // the stage that it precedes
  const RightMatrix<T>* matrix;
  Rows<const T> operand;  // [N, from]
  bool begins_at_zero;    // a state that is zero before the first step
  Rows<T> target;         // [N, to]
  bool accumulate;
};

// What the threads of a team share.
template <class T>
struct Shared : ForwardBuffers<T> {
  using ForwardBuffers<T>::r_part, ForwardBuffers<T>::values, ForwardBuffers<T>::value_layout;
  using ForwardBuffers<T>::product_values, ForwardBuffers<T>::product_layout;

  const ScanForward<T>& p;
  const Shape& shape = p.shape;
  const CellShape& cell = *shape.cell;
  const Cell<T>& functions = *find_cell<T>(cell.name);
  const Plan plan = plan_of<T>(p, Pass::kForward);
  const Partition& partition = plan.partition;
  WeightMatrices<T> weights;
  std::vector<StepProduct<T>> products;
  Workspace<T> workspace;

  explicit Shared(const ScanForward<T>& params)
      : ForwardBuffers<T>(params.shape), p(params), weights{.transposed = true} {
    this->each(shape, p.steps, [&](T** buffer, int64_t count) { workspace.add(buffer, count); });
    add_weights();
    weights.add_buffers(workspace);
    workspace.allocate();
    list_products();
  }

  bool has_products(int stage) const {
    return std::any_of(products.begin(), products.end(), [&](const auto& product) { return product.before == stage; });
  }

 private:
  // The columns of `gates` values of `width` each, cut where parts meet.
  std::vector<Range> pieces(int gates, int64_t width) const {
    if (!partition.by_units) return {{0, gates * width}};
    std::vector<Range> result;
    for (int g = 0; g < gates; ++g) {
      for (int64_t part = 0; part < partition.parts; ++part) {
        const Range units = partition.units(width, part);
        result.push_back({g * width + units.begin, g * width + units.end});
      }
    }
    return result;
  }

  void add_weights() {
    for (int s = 0; s < cell.streams; ++s) {
      const Matrices<const T>& w = p.w[s];
      const Matrices<const BFloat16>& b = p.bfloat16_w[s];
      weights.ih.push_back({{shape.C, {{0, shape.gate_columns()}}, plan.input}, source(w.w_ih, b.w_ih, shape.C)});
      if (cell.recurrent_gates()) {
        const int64_t from = shape.head_width();
        weights.hh.push_back(
            {{from, pieces(cell.recurrent_gates(), shape.H()), plan.recurrent, {shape.H(), shape.heads}},
             source(w.w_hh, b.w_hh, from)});
      }
      for (int m = 0; m < cell.matrices; ++m) {
        const Product& product = product_with(cell, m);
        const int64_t from = shape.width(product.from);
        weights.own.push_back(
            {{from, pieces(1, shape.width(product.to)), plan.input}, source(w.matrix[m], b.matrix[m], from)});
      }
    }
  }

  // Of two streams, the second's result is W dh + dW h.
  void list_products() {
    for (int target = 0; target < cell.streams; ++target) {
      for (int source = target; source >= 0; --source) {
        const int w = target - source;
        const bool accumulate = source != target;
        if (cell.recurrent_gates()) {
          products.push_back({0,
                              &weights.hh[w].matrix,
                              state(source * cell.states.count),
                              !p.h0[source * cell.states.count],
                              {r_part[target], shape.recurrent_columns()},
                              accumulate});
        }
        for (int k = 0; k < cell.products; ++k) {
          const Product& product = cell.product[k];
          const int number = source * cell.states.count + product.state;
          const Rows<const T> operand =
              product.state >= 0
                  ? state(number)
                  : Rows<const T>{values + value_layout.offset[product.value[source]], value_layout.columns};
          products.push_back(
              {product.before,
               &weights.own[w * cell.matrices + product.matrix].matrix,
               operand,
               product.state >= 0 && !p.h0[number],
               {product_values + product_layout.offset[target * cell.products + k], product_layout.columns},
               accumulate});
        }
      }
    }
  }

  Rows<const T> state(int k) const { return {p.state[k], shape.state_width(k)}; }
};

// One thread's view of the scan: the pieces of work that engine/scan.h asks for.
template <class T>
class Forward {
 public:
  Forward(Shared<T>& shared, const Team& team)
      : s_(shared), p_(shared.p), team_(team), rows_(block_rows_of(shared.p, shared.plan)) {}

  void begin() {
    if (team_.rank == 0) start();
    s_.weights.pack(team_);
    team_.sync();
  }

  void project_input(int64_t block) {
    const bool own = s_.plan.own_rows;
    if (!own) team_.sync();  // the last block's projections have been used
    const Range rows = p_.steps.rows_of(block);
    rows_.begin_block(block);
    if (p_.links) p_.links->take(rows);
    each_group(team_, rows_, [&](const Team& team, int64_t group) {
      for (int target = 0; target < s_.cell.streams; ++target) {
        const Rows<T> x_part = Rows<T>{s_.x_part[target], s_.shape.gate_columns()}.from(rows_.of(group).begin);
        for (int source = target; source >= 0; --source) {
          const RightMatrix<T>& w = s_.weights.ih[target - source].matrix;
          if (own) {
            w.multiply(rows_.outside(group), RightMatrix<T>::Apart::kA, p_.x[source], x_part, source != target);
          } else {
            w.multiply(team, rows.size(), p_.x[source].from(rows.begin), x_part, source != target);
          }
        }
      }
      draw_noise(team, p_, rows_, group, s_.noise);
    });
    if (!own) team_.sync();
  }

  void keep_checkpoint(int64_t segment) {
    const Partition& partition = s_.partition;
    const Range all{0, p_.steps.N};
    team_.each(partition.parts, [&](int64_t part) {
      const Range mine = partition.by_units ? share_of(all, part, partition.parts) : partition.sequences[part];
      for (int64_t n = mine.begin; n < mine.end; ++n) {
        T* target = p_.checkpoints[segment * p_.steps.N + n];
        for (int k = 0; k < s_.cell.all_states(); ++k) {
          const int64_t width = s_.shape.state_width(k);
          target = std::copy_n(p_.state[k] + n * width, width, target);
        }
      }
    });
  }

  void run(Range steps) {
    p_.steps.each(steps, false, [&](int64_t t) { step(t); });
    if (p_.links) p_.links->give({p_.steps.first(steps.begin), p_.steps.first(steps.end)});
  }

 private:
  void step(int64_t t) {
    const Partition& partition = s_.partition;
    const Range alive{0, p_.steps.rows(t)};
    if (!partition.by_units) {
      team_.each(partition.parts, [&](int64_t part) {
        const Range sequences = partition.sequences[part].below(alive.end);
        for (int i = 0; i < s_.cell.forward_stages; ++i) {
          products(i, t, sequences, 0);
          stage(i, t, sequences, {0, width_of(i)}, part);
        }
        keep_states(t, sequences);
      });
      return;
    }
    for (int i = 0; i < s_.cell.forward_stages; ++i) {
      if (s_.has_products(i)) {
        team_.each(partition.parts, [&](int64_t part) { products(i, t, alive, part); });
        team_.sync();
      }
      team_.each(partition.parts, [&](int64_t part) {
        if (s_.cell.forward[i].needs_whole_rows()) {
          stage(i, t, share_of(alive, part, partition.parts), {0, width_of(i)});
        } else {
          stage(i, t, alive, partition.units(width_of(i), part));
        }
      });
      if (meets_after(s_.cell.forward, i, s_.cell.forward_stages) || s_.has_products(i + 1)) team_.sync();
    }
    // Until the next step writes them, which is after its products, for which the team meets.
    team_.each(partition.parts, [&](int64_t part) { keep_states(t, share_of(alive, part, partition.parts)); });
  }

  void start() {
    const int64_t gates = s_.shape.gate_columns(), summed = s_.cell.summed * s_.shape.H();
    const int64_t recurrent = s_.shape.recurrent_columns();
    for (int s = 0; s < s_.cell.streams; ++s) {
      const T *b_ih = p_.w[s].b_ih, *b_hh = p_.w[s].b_hh;
      T* bias = s_.bias[s];
      for (int64_t i = 0; i < gates; ++i) bias[i] = (b_ih ? b_ih[i] : T(0)) + (b_hh && i < summed ? b_hh[i] : T(0));
      for (int64_t i = summed; i < recurrent; ++i) bias[gates + i - summed] = b_hh ? b_hh[i] : T(0);
    }
    for (int k = 0; k < s_.cell.all_states(); ++k) {
      const int64_t count = p_.steps.N * s_.shape.state_width(k);
      p_.h0[k] ? std::copy_n(p_.h0[k], count, p_.state[k]) : std::fill_n(p_.state[k], count, T(0));
    }
  }

  void keep_states(int64_t t, Range sequences) const {
    for (int k = 0; k < s_.cell.all_states(); ++k) {
      if (!p_.sequence[k]) continue;
      const Rows<T> target = p_.sequence[k].from(p_.steps.first(t));
      const int64_t width = s_.shape.state_width(k);
      for (int64_t n = sequences.begin; n < sequences.end; ++n) std::copy_n(p_.state[k] + n * width, width, target[n]);
    }
  }

  int64_t width_of(int stage) const { return s_.shape.width(s_.cell.forward[stage].width); }

  void products(int stage, int64_t t, Range sequences, int64_t part) const {
    if (!sequences.size()) return;
    const Range begun = sequences.below(p_.steps.continued(t));
    for (const StepProduct<T>& product : s_.products) {
      if (product.before != stage) continue;
      const RightMatrix<T>& matrix = *product.matrix;
      if (s_.partition.by_units) fetch(product.operand.from(sequences.begin), sequences.size(), matrix.depth());
      // Sequences that begin here at zero have one result, zero but for weights that are not finite: made once.
      const int64_t rows = product.begins_at_zero ? std::min(begun.size() + 1, sequences.size()) : sequences.size();
      const Rows<T> target = product.target.from(sequences.begin);
      for (int64_t piece = part; piece < matrix.pieces(); piece += s_.partition.parts) {
        matrix.multiply(rows, product.operand.from(sequences.begin), {0, matrix.depth()}, target, product.accumulate,
                        piece, piece + 1);
        const Range columns = matrix.columns(piece);
        for (int64_t n = rows; n < sequences.size(); ++n) {
          std::copy_n(target[rows - 1] + columns.begin, columns.size(), target[n] + columns.begin);
        }
      }
    }
  }

  void stage(int number, int64_t t, Range sequences, Range units, int64_t part = 0) const {
    if (!sequences.size() || !units.size()) return;
    const T* params[kMaxParams];
    params_of(p_, params);
    const int64_t row = rows_.at(part, t, sequences.begin);
    const StepForward<T> step = forward_step<T>(p_, s_, row, t, sequences, units, params);
    s_.functions.forward[number](step);
  }

  Shared<T>& s_;
  const ScanForward<T>& p_;
  const Team team_;
  BlockRows rows_;
};

}  // namespace

template <class T>
void scan_forward(const ScanForward<T>& given) {
  ScanForward<T> params = given;
  if (!params.links) params.steps.block = forward_block(params.shape, params.steps, sizeof(T), machine_of(params));
  Shared<T> shared(params);
  run_team(shared.plan.threads, [&](const Team& team) {
    Forward<T> forward(shared, team);
    rnnext::scan_forward(forward, params.steps);
  });
}

template void scan_forward<float>(const ScanForward<float>&);
template void scan_forward<double>(const ScanForward<double>&);

}  // namespace rnnext::cpu
