#include "cpu/part_sums.h"
#include "cpu/products.h"
#include "cpu/registry.h"
#include "cpu/scan.h"
#include "cpu/weight_gradients.h"
#include "engine/scan.h"
#include "engine/step.h"

namespace rnnext::cpu {
namespace {

// The gradient of the operand of a product in a step: target (+)= gradient * matrix[depths, :].
template <class T>
struct StepProduct {
  int stream;  // of the operand
  int before;  // the stage that it precedes; the number of stages: after the last one
  const RightMatrix<T>* matrix;
  Range depths;
  int64_t gradient;  // column of the product's result among the gradients
  Rows<T> target;    // [N, from]
  bool accumulate;
};

// What the threads of a team share.
template <class T>
struct Shared : BackwardBuffers<T> {
  using BackwardBuffers<T>::operands, BackwardBuffers<T>::operand_layout, BackwardBuffers<T>::gradient_layout;

  const ScanBackward<T>& p;
  const Shape& shape = p.shape;
  const CellShape& cell = *shape.cell;
  const Cell<T>& functions = *find_cell<T>(cell.name);
  const Plan plan = plan_of<T>(p, Pass::kBackward);
  const Partition& partition = plan.partition;
  WeightMatrices<T> weights;
  std::vector<StepProduct<T>> products;
  std::vector<StepProduct<T>> products_by_depth;  // of W_hh; sums_by_depth come between them and their targets
  T* sums_by_depth = nullptr;                     // [2][parts][streams][columns of W_hh]
  BlockRows rows = block_rows_of(p, plan);
  PartSums<T> part_sums{p, plan.meets_nobody ? partition.parts : 1};
  std::vector<WeightGradients<T>> weight_gradients;  // of each part that has sums of its own
  Workspace<T> workspace;

  explicit Shared(const ScanBackward<T>& params)
      : BackwardBuffers<T>(params.shape, true), p(params), weights{.transposed = false} {
    this->each(shape, p.steps, [&](T** buffer, int64_t count) { workspace.add(buffer, count); });
    add_weights();
    weights.add_buffers(workspace);
    const int64_t sums = part_sums.parts();
    weight_gradients.reserve(sums);
    for (int64_t i = 0; i < sums; ++i) {
      const Range groups = plan.meets_nobody ? Range{i, i + 1} : Range{0, rows.groups()};
      weight_gradients.emplace_back(part_sums.of(i), *this, groups, plan.meets_nobody ? 1 : plan.threads);
      weight_gradients.back().add_buffers(rows, workspace);
    }
    workspace.add(&sums_by_depth, plan.by_depth ? 2 * partition.parts * cell.streams * sum_columns() : 0);
    workspace.allocate();
    list_products();
    std::fill_n(this->zeros, this->widest, T(0));
  }

  bool has_products(int stage) const {
    return std::any_of(products.begin(), products.end(), [&](const auto& product) { return product.before == stage; });
  }

  // Whether the gradients of states that the last products of a step add up are read by other parts in the next step:
  // a part owns its units alone, not those of whole rows, of other blocks of W_hh, or a value that all units share.
  bool mixes_units() const {
    bool mixes = cell.backward[0].needs_whole_rows() || shape.heads > 1 || cell.state_width(0) == kOne;
    for (int k = 0; k < cell.products; ++k) mixes |= cell.product[k].state >= 0 && cell.product[k].from == kOne;
    return mixes;
  }

  // What a part adds up to the gradient of h of a stream in step t: the next step may write while another part still reads.
  T* sum_by_depth(int64_t t, int64_t part, int stream) const {
    return sums_by_depth + ((t % 2 * partition.parts + part) * cell.streams + stream) * sum_columns();
  }

  // Of one of these rows: threads write no cache line together.
  int64_t sum_columns() const {
    constexpr int64_t line = 64 / sizeof(T);
    return (shape.head_width() + line - 1) / line * line;
  }

  // The first column of gradient k of a stream.
  int64_t column(int stream, int k) const { return gradient_layout.offset[stream * cell.gradients() + k]; }

 private:
  std::vector<Range> pieces(int64_t width) const {
    if (!partition.by_units) return {{0, width}};
    std::vector<Range> result;
    for (int64_t part = 0; part < partition.parts; ++part) result.push_back(partition.units(width, part));
    return result;
  }

  void add_weights() {
    for (int s = 0; s < cell.streams; ++s) {
      const Matrices<const T>& w = p.w[s];
      const Matrices<const BFloat16>& b = p.bfloat16_w[s];
      if (p.dx[0]) {
        weights.ih.push_back({{shape.gate_columns(), {{0, shape.C}}, plan.input}, source(w.w_ih, b.w_ih, shape.C)});
      }
      if (cell.recurrent_gates()) {
        const int64_t from = shape.head_width();
        const std::vector<Range> columns = plan.by_depth ? std::vector<Range>{{0, from}} : pieces(from);
        weights.hh.push_back({{shape.recurrent_columns(), columns, plan.recurrent}, source(w.w_hh, b.w_hh, from)});
      }
      for (int m = 0; m < cell.matrices; ++m) {
        const Product& product = product_with(cell, m);
        const int64_t from = shape.width(product.from);
        weights.own.push_back(
            {{shape.width(product.to), pieces(from), plan.input}, source(w.matrix[m], b.matrix[m], from)});
      }
    }
  }

  // Of two streams, the result's gradient G and its tangent's Gt give W^T G + dW^T Gt to h, and W^T Gt to dh.
  void list_products() {
    for (int target = 0; target < cell.streams; ++target) {
      for (int source = target; source < cell.streams; ++source) {
        const int w = source - target;
        if (cell.recurrent_gates()) list_recurrent(target, source, &weights.hh[w].matrix);
        for (int k = 0; k < cell.products; ++k) {
          const Product& product = cell.product[k];
          const bool of_state = product.state >= 0;
          const Rows<T> into =
              of_state ? state(target * cell.states.count + product.state)
                       : Rows<T>{operands + operand_layout.offset[target * cell.products + k], operand_layout.columns};
          products.push_back({target,
                              of_state ? cell.backward_stages : product.returns,
                              &weights.own[w * cell.matrices + product.matrix].matrix,
                              {0, shape.width(product.to)},
                              column(source, cell.slots() + k),
                              into,
                              of_state || source != target});
        }
      }
    }
  }

  // The recurrent part's slots are the summed ones and the last ones; of a block of W_hh, a part of each.
  void list_recurrent(int target, int source, const RightMatrix<T>* matrix) {
    const int64_t H = shape.H(), block = H / shape.heads;
    const Rows<T> dh = state(target * cell.states.count);
    std::vector<StepProduct<T>>& products = plan.by_depth ? products_by_depth : this->products;
    const auto list = [&](int first_gate, int last_gate, int slot) {
      const int64_t begin = first_gate * H, end = last_gate * H, step = shape.heads == 1 ? end - begin : block;
      for (int64_t i = begin; i < end; i += step) {
        products.push_back({target,
                            cell.backward_stages,
                            matrix,
                            {i, i + step},
                            column(source, slot) + i - begin,
                            dh.from(0, shape.heads == 1 ? 0 : i % H / block * shape.head_width()),
                            true});
      }
    };
    list(0, cell.summed, 0);
    list(cell.summed, cell.recurrent_gates(), cell.gates());
  }

  Rows<T> state(int k) const { return {p.dstate[k], shape.state_width(k)}; }
};

// One thread's view of the scan: the pieces of work that engine/scan.h asks for.
template <class T>
class Backward {
 public:
  Backward(Shared<T>& shared, const Team& team) : s_(shared), p_(shared.p), team_(team), rows_(shared.rows) {}

  void begin() {
    s_.weights.pack(team_);
    each_sums([&](const Team& team, const WeightGradients<T>& sums) { sums.begin(team, rows_); });
    team_.sync();
  }

  void begin_block(int64_t block) {
    rows_.begin_block(block);
    if (p_.links) p_.links->take(p_.steps.rows_of(block));
    if (!s_.cell.noises) return;
    each_group(team_, rows_, [&](const Team& team, int64_t group) { draw_noise(team, p_, rows_, group, s_.noise); });
    if (!s_.plan.own_rows) team_.sync();
  }

  void run(Range steps) {
    p_.steps.each(steps, true, [&](int64_t t) { step(t); });
  }

  // dx = da_x W_ih; of two streams as in list_products.
  void input_gradient(int64_t block) {
    const bool own = s_.plan.own_rows;
    if (!own) team_.sync();  // the gradients of the whole block are there
    if (!p_.dx[0]) return;
    const Range rows = p_.steps.rows_of(block);
    each_group(team_, rows_, [&](const Team& team, int64_t group) {
      for (int target = 0; target < s_.cell.streams; ++target) {
        for (int source = target; source < s_.cell.streams; ++source) {
          const Rows<const T> all{s_.gradients + s_.column(source, 0), s_.gradient_layout.columns};
          const Rows<const T> da = all.from(rows_.of(group).begin);
          const RightMatrix<T>& w = s_.weights.ih[source - target].matrix;
          const bool accumulate = p_.accumulate_dx || source != target;
          if (own) {
            w.multiply(rows_.outside(group), RightMatrix<T>::Apart::kC, da, p_.dx[target], accumulate);
          } else {
            w.multiply(team, rows.size(), da, p_.dx[target].from(rows.begin), accumulate);
          }
        }
      }
    });
    if (p_.links) p_.links->give(rows);
  }

  void weight_gradients(int64_t, bool first) {
    if (s_.plan.own_rows && !s_.plan.meets_nobody) team_.sync();  // as in input_gradient
    each_sums([&](const Team& team, const WeightGradients<T>& sums) {
      sums.add_block(team, rows_, first && !p_.accumulate_dw);
    });
    if (!s_.plan.meets_nobody) team_.sync();  // the gradients and the panels may be written again
  }

  void end() {
    if (!s_.plan.meets_nobody || p_.goes_on) return;
    team_.sync();
    s_.part_sums.add_up(team_);
  }

 private:
  void step(int64_t t) {
    const Partition& partition = s_.partition;
    const Range alive{0, p_.steps.rows(t)};
    const int stages = s_.cell.backward_stages;
    if (!partition.by_units) {
      team_.each(partition.parts, [&](int64_t part) {
        const Range sequences = partition.sequences[part].below(alive.end);
        add_gradients(t, sequences);
        for (int i = 0; i < stages; ++i) {
          products(i, t, sequences, part);
          stage(i, t, sequences, {0, width_of(i)}, part);
        }
        products(stages, t, handed_on(t, sequences), part);
      });
      return;
    }
    if (has_sequences()) {
      team_.sync();
      team_.each(partition.parts, [&](int64_t part) { add_gradients(t, share_of(alive, part, partition.parts)); });
      team_.sync();
    }
    for (int i = 0; i < stages; ++i) {
      if (i > 0 && s_.has_products(i)) {
        team_.each(partition.parts, [&](int64_t part) { products(i, t, alive, part); });
        team_.sync();
      }
      team_.each(partition.parts, [&](int64_t part) {
        if (s_.cell.backward[i].needs_whole_rows()) {
          stage(i, t, share_of(alive, part, partition.parts), {0, width_of(i)});
        } else {
          stage(i, t, alive, partition.units(width_of(i), part));
        }
      });
      if (meets_after(s_.cell.backward, i, stages) || s_.has_products(i + 1)) team_.sync();
    }
    team_.each(partition.parts, [&](int64_t part) { products(stages, t, handed_on(t, alive), part); });
    if (s_.plan.by_depth && handed_on(t, alive).size()) products_by_depth(t);
    if (s_.mixes_units()) team_.sync();
  }

  // Of sequences, those whose states before step t have gradients of use.
  Range handed_on(int64_t t, Range sequences) const {
    return p_.wants_dstate || p_.goes_on ? sequences : sequences.below(p_.steps.continued(t));
  }

  // Of one sequence, whose row a part's sums are.
  void products_by_depth(int64_t t) const {
    const int64_t parts = s_.partition.parts, width = s_.shape.head_width();
    team_.each(parts, [&](int64_t part) {
      std::fill_n(s_.sum_by_depth(t, part, 0), s_.cell.streams * s_.sum_columns(), T(0));
      for (const StepProduct<T>& product : s_.products_by_depth) {
        const Range depths = share_of(product.depths, part, parts);
        if (!depths.size()) continue;
        const Rows<const T> gradient = this->gradient(t, product, part, 0).from(0, depths.begin - product.depths.begin);
        fetch(gradient, 1, depths.size());
        product.matrix->multiply(1, gradient, depths, {s_.sum_by_depth(t, part, product.stream), width}, true, 0, 1);
      }
    });
    team_.sync();
    team_.each(parts, [&](int64_t part) {
      const Range mine = s_.partition.units(width, part);
      for (int stream = 0; stream < s_.cell.streams; ++stream) {
        T* target = p_.dstate[stream * s_.cell.states.count];
        for (int64_t other = 0; other < parts; ++other) {
          const T* sum = s_.sum_by_depth(t, other, stream);
          for (int64_t i = mine.begin; i < mine.end; ++i) target[i] += sum[i];
        }
      }
    });
  }

  bool has_sequences() const {
    return std::any_of(std::begin(p_.dsequence), std::end(p_.dsequence), [](auto rows) { return bool(rows); });
  }

  // Those of the states after step t that come from their sequences.
  void add_gradients(int64_t t, Range sequences) const {
    for (int k = 0; k < s_.cell.all_states(); ++k) {
      if (!p_.dsequence[k]) continue;
      const Rows<const T> source = p_.dsequence[k].from(p_.steps.first(t));
      const Rows<T> target{p_.dstate[k], s_.shape.state_width(k)};
      for (int64_t n = sequences.begin; n < sequences.end; ++n) {
        for (int64_t i = 0; i < target.stride; ++i) target[n][i] += source[n][i];
      }
    }
  }

  int64_t width_of(int stage) const { return s_.shape.width(s_.cell.backward[stage].width); }

  void products(int stage, int64_t t, Range sequences, int64_t part) const {
    if (!sequences.size()) return;
    const int64_t piece = s_.partition.by_units ? part : 0;
    for (const StepProduct<T>& product : s_.products) {
      if (product.before != stage || !product.depths.size()) continue;
      const Rows<const T> gradient = this->gradient(t, product, part, sequences.begin);
      if (s_.partition.by_units) fetch(gradient, sequences.size(), product.depths.size());
      product.matrix->multiply(sequences.size(), gradient, product.depths, product.target.from(sequences.begin),
                               product.accumulate, piece, piece + 1);
    }
  }

  // From sequence n of a part on.
  Rows<const T> gradient(int64_t t, const StepProduct<T>& product, int64_t part, int64_t n) const {
    return Rows<const T>{s_.gradients, s_.gradient_layout.columns}.from(rows_.at(part, t, n), product.gradient);
  }

  // Sequences that began before t find their last state among the outputs, the others at the initial state.
  void stage(int number, int64_t t, Range sequences, Range units, int64_t part = 0) const {
    const int64_t continued = p_.steps.continued(t);
    stage(number, t, sequences.below(continued), units, part, true);
    stage(number, t, {std::max(sequences.begin, continued), sequences.end}, units, part, false);
  }

  void stage(int number, int64_t t, Range sequences, Range units, int64_t part, bool continued) const {
    if (!sequences.size() || !units.size()) return;
    const T* params[kMaxParams];
    params_of(p_, params);
    const StepBackward<T> step =
        backward_step<T>(p_, s_, rows_.at(part, t, sequences.begin), t, sequences, units, continued, params);
    s_.functions.backward[number](step);
  }

  // Calls work(team, sums): for those that are the whole team's, or for this thread's of each part's, by it alone.
  template <class Work>
  void each_sums(Work work) const {
    const std::vector<WeightGradients<T>>& sums = s_.weight_gradients;
    if (!s_.plan.meets_nobody) return work(team_, sums[0]);
    team_.each(sums.size(), [&](int64_t part) { work(Team{0, 1, nullptr}, sums[part]); });
  }

  Shared<T>& s_;
  const ScanBackward<T>& p_;
  const Team team_;
  BlockRows rows_;
};

}  // namespace

template <class T>
void scan_backward(const ScanBackward<T>& params) {
  Shared<T> shared(params);
  run_team(shared.plan.threads, [&](const Team& team) {
    Backward<T> backward(shared, team);
    rnnext::scan_backward(backward, params.steps);
    backward.end();
  });
}

template void scan_backward<float>(const ScanBackward<float>&);
template void scan_backward<double>(const ScanBackward<double>&);

}  // namespace rnnext::cpu
