#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/partition.h"
#include "cpu/scan.h"
#include "cpu/workspace.h"
#include "engine/scan.h"

namespace rnnext::cpu {
namespace {

// Rows of a block, rounded up: to a power of two, then to a multiple of 64. The products that sum over rows then have
// few distinct depths. Zeros fill the rest.
int64_t padded(int64_t rows) {
  int64_t depth = 1;
  while (depth < 64 && depth < rows) depth *= 2;
  return (rows + depth - 1) / depth * depth;
}

// What the threads of a team share.
template <class T>
struct Shared {
  const ScanBackward<T>& p;
  const CellShape& cell = p.cell->shape;
  const int64_t columns = cell.gates() * p.H;
  const int64_t slots = cell.slots() * p.H;
  Partition partition;
  RightMatrix<T> w_ih, w_hh;
  Workspace<T> workspace;
  T *zeros, *da, *w_ih_buffer, *w_hh_buffer;
  T *x_panels, *h_panels;  // [panel][padded rows][width]: a block's inputs, and the states before its steps
  T* da_transposed;        // [thread][kRowChunk][padded rows]

  Shared(const ScanBackward<T>& params, int threads)
      : p(params),
        partition(cpu::partition(threads, p.steps, p.H, columns, sizeof(T))),
        w_ih(columns, {{0, p.C}}, p.steps.total() >= kWorthPacking),
        w_hh(columns, partition.by_units ? partition.parts : std::vector<Range>{{0, p.H}},
             p.steps.total() >= kWorthPacking) {
    const int64_t rows = p.steps.most_rows_in_a_block();
    workspace.add(&zeros, p.H);
    workspace.add(&da, rows * slots);
    workspace.add(&w_ih_buffer, p.dx ? w_ih.buffer_size() : 0);
    workspace.add(&w_hh_buffer, w_hh.buffer_size());
    workspace.add(&x_panels, p.dw_ih ? padded(rows) * p.C : 0);
    workspace.add(&h_panels, p.dw_hh ? padded(rows) * p.H : 0);
    workspace.add(&da_transposed, p.wants_weights() ? threads * kRowChunk * padded(rows) : 0);
    workspace.allocate();
    std::fill_n(zeros, p.H, T(0));
  }

  int64_t parts() const { return partition.parts.size(); }
};

// One thread's view of the scan: the pieces of work that engine/scan.h asks for.
template <class T>
class Backward {
 public:
  Backward(Shared<T>& shared, const Team& team) : s_(shared), p_(shared.p), team_(team) {}

  void begin() {
    if (p_.dx) s_.w_ih.pack(team_, p_.w_ih, false, s_.w_ih_buffer);
    s_.w_hh.pack(team_, p_.w_hh, false, s_.w_hh_buffer);
  }

  void step(int64_t t) {
    first_row_ = p_.steps.rows_of(t / p_.steps.block).begin;
    const int64_t alive = p_.steps.rows(t);
    if (s_.partition.by_units) {
      team_.each(s_.parts(), [&](int64_t part) { pointwise(t, {0, alive}, s_.partition.parts[part]); });
      team_.sync();
      team_.each(s_.parts(), [&](int64_t part) { product(t, {0, alive}, part); });
    } else {
      team_.each(s_.parts(), [&](int64_t part) {
        const Range sequences = s_.partition.parts[part].below(alive);
        pointwise(t, sequences, {0, p_.H});
        product(t, sequences, 0);
      });
    }
  }

  // dx = da_x W_ih
  void input_gradient(int64_t block) {
    team_.sync();  // da of the whole block is there
    if (!p_.dx) return;
    const Range rows = p_.steps.rows_of(block);
    s_.w_ih.multiply(team_, rows.size(), Rows<const T>{s_.da, s_.slots}, p_.dx.from(rows.begin), p_.accumulate_dx);
  }

  // dW_ih += da_x^T x, dW_hh += da_r^T h, and the sums of da over rows for the biases.
  void weight_gradients(int64_t block, bool first) {
    if (p_.wants_weights()) {
      const Range rows = p_.steps.rows_of(block);
      const int64_t depth = padded(rows.size());
      pack_inputs(rows, depth);
      pack_states(block, rows, depth);
      team_.sync();
      const int64_t summed = s_.cell.summed * p_.H, apart = s_.cell.apart * p_.H;
      for_my_chunks({0, summed}, rows.size(), depth, [&](Range chunk, Rows<T> a) {
        input_side(chunk, a, depth, first);
        recurrent_side(chunk, a, depth, first);
      });
      for_my_chunks({summed, summed + apart}, rows.size(), depth,
                    [&](Range chunk, Rows<T> a) { input_side(chunk, a, depth, first); });
      for_my_chunks({summed + apart, summed + 2 * apart}, rows.size(), depth, [&](Range chunk, Rows<T> a) {
        recurrent_side({chunk.begin - apart, chunk.end - apart}, a, depth, first);
      });
    }
    team_.sync();  // da and the panels may be written again
  }

 private:
  Rows<const T> sequences_of(const T* states, int64_t first, int64_t unit) const {
    return states ? Rows<const T>{states, p_.H}.from(first, unit) : Rows<const T>{s_.zeros, 0};
  }

  // Sequences that began before t find their last state among the outputs, the others at the initial state.
  void pointwise(int64_t t, Range sequences, Range units) const {
    const int64_t continued = p_.steps.continued(t);
    pointwise(t, sequences.below(continued), units, true);
    pointwise(t, {std::max(sequences.begin, continued), sequences.end}, units, false);
  }

  void pointwise(int64_t t, Range sequences, Range units, bool continued) const {
    if (!sequences.size() || !units.size()) return;
    const int64_t row = p_.steps.first(t) + sequences.begin;
    StepBackward<T> step{.rows = sequences.size(), .units = units.size(), .hidden = p_.H};
    step.record = p_.record.from(row, units.begin);
    step.next = p_.y.from(row, units.begin);
    if (p_.dy) step.dy = p_.dy.from(row, units.begin);
    for (int k = 0; k < s_.cell.states; ++k) {
      if (continued) {
        const int64_t before = p_.steps.first(p_.steps.previous(t)) + sequences.begin;
        step.state[k] = k == 0 ? p_.y.from(before, units.begin)
                               : p_.record.from(before, (s_.cell.saved + k - 1) * p_.H + units.begin);
      } else {
        step.state[k] = sequences_of(p_.h0[k], sequences.begin, units.begin);
      }
      step.dstate[k] = Rows<T>{p_.dstate[k], p_.H}.from(sequences.begin, units.begin);
    }
    step.da = Rows<T>{s_.da, s_.slots}.from(row - first_row_, units.begin);
    p_.cell->backward(step);
  }

  // dh += da_r W_hh; the recurrent part's slots are the summed ones and the last ones.
  void product(int64_t t, Range sequences, int64_t piece) const {
    if (!sequences.size()) return;
    const int64_t summed = s_.cell.summed * p_.H, apart = s_.cell.apart * p_.H;
    const Rows<const T> da = Rows<const T>{s_.da, s_.slots}.from(p_.steps.first(t) + sequences.begin - first_row_);
    const Rows<T> dh = Rows<T>{p_.dstate[0], p_.H}.from(sequences.begin);
    if (summed) s_.w_hh.multiply(sequences.size(), da, {0, summed}, dh, true, piece, piece + 1);
    if (apart) {
      s_.w_hh.multiply(sequences.size(), da.from(0, summed + apart), {summed, summed + apart}, dh, true, piece,
                       piece + 1);
    }
  }

  // Cuts row `k` of a [depth, columns] matrix into panels of [depth][width].
  static void scatter(const T* row, int64_t k, int64_t columns, int64_t depth, T* panels) {
    for (int64_t c = 0; c < columns; c += kPanelWidth) {
      const int64_t width = std::min(kPanelWidth, columns - c);
      T* target = panels + c * depth + k * width;
      row ? std::copy_n(row + c, width, target) : std::fill_n(target, width, T(0));
    }
  }

  void pack_inputs(Range rows, int64_t depth) const {
    if (!p_.dw_ih) return;
    const Range mine = team_.share(depth);
    for (int64_t k = mine.begin; k < mine.end; ++k) {
      scatter(k < rows.size() ? p_.x[rows.begin + k] : nullptr, k, p_.C, depth, s_.x_panels);
    }
  }

  void pack_states(int64_t block, Range rows, int64_t depth) const {
    if (!p_.dw_hh) return;
    const Range mine = team_.share(depth), steps = p_.steps.steps_of(block);
    for (int64_t t = steps.begin; t < steps.end; ++t) {
      const int64_t first = p_.steps.first(t) - rows.begin, continued = p_.steps.continued(t);
      const int64_t end = std::min(mine.end, first + p_.steps.rows(t));
      for (int64_t k = std::max(mine.begin, first); k < end; ++k) {
        const int64_t n = k - first;
        const T* h = n < continued ? p_.y[p_.steps.first(p_.steps.previous(t)) + n] : sequences_of(p_.h0[0], n, 0).data;
        scatter(h, k, p_.H, depth, s_.h_panels);
      }
    }
    for (int64_t k = std::max(mine.begin, rows.size()); k < mine.end; ++k) {
      scatter(nullptr, k, p_.H, depth, s_.h_panels);
    }
  }

  // Hands out this thread's slots in chunks, each with da of the chunk transposed: [chunk, depth].
  template <class Work>
  void for_my_chunks(Range slots, int64_t rows, int64_t depth, Work work) const {
    const Range mine = team_.share(slots.size(), kUnitGrain);
    const Rows<T> a{s_.da_transposed + team_.rank * kRowChunk * padded(p_.steps.most_rows_in_a_block()), depth};
    for (int64_t i = mine.begin; i < mine.end; i += kRowChunk) {
      const Range chunk{slots.begin + i, slots.begin + std::min(mine.end, i + kRowChunk)};
      kernels<T>().transpose(rows, chunk.size(), Rows<const T>{s_.da, s_.slots}.from(0, chunk.begin), a);
      for (int64_t j = 0; j < chunk.size(); ++j) std::fill(a[j] + rows, a[j] + depth, T(0));
      work(chunk, a);
    }
  }

  void input_side(Range gates, Rows<const T> a, int64_t depth, bool first) const {
    if (p_.dw_ih) accumulate(gates, a, depth, s_.x_panels, p_.C, p_.dw_ih, first);
    if (p_.db_ih) kernels<T>().row_sums(gates.size(), depth, a, p_.db_ih + gates.begin, !first);
  }

  void recurrent_side(Range gates, Rows<const T> a, int64_t depth, bool first) const {
    if (p_.dw_hh) accumulate(gates, a, depth, s_.h_panels, p_.H, p_.dw_hh, first);
    if (p_.db_hh) kernels<T>().row_sums(gates.size(), depth, a, p_.db_hh + gates.begin, !first);
  }

  static void accumulate(Range gates, Rows<const T> a, int64_t depth, const T* panels, int64_t columns, T* dw,
                         bool first) {
    const Rows<T> target = Rows<T>{dw, columns}.from(gates.begin);
    for (int64_t c = 0; c < columns; c += kPanelWidth) {
      const int64_t width = std::min(kPanelWidth, columns - c);
      gemm<T>(gates.size(), width, depth, a, {panels + c * depth, width}, target.from(0, c), !first);
    }
  }

  Shared<T>& s_;
  const ScanBackward<T>& p_;
  const Team team_;
  int64_t first_row_ = 0;
};

}  // namespace

template <class T>
void scan_backward(const ScanBackward<T>& params) {
  const int threads = useful_threads(params.steps, params.cell->shape.gates() * params.H, params.C + params.H);
  Shared<T> shared(params, threads);
  run_team(threads, [&](const Team& team) {
    Backward<T> backward(shared, team);
    rnnext::scan_backward(backward, params.steps);
  });
}

template void scan_backward<float>(const ScanBackward<float>&);
template void scan_backward<double>(const ScanBackward<double>&);

}  // namespace rnnext::cpu
