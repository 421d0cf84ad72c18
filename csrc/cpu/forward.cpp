#include "cpu/gemm.h"
#include "cpu/partition.h"
#include "cpu/scan.h"
#include "cpu/workspace.h"
#include "engine/scan.h"

namespace rnnext::cpu {
namespace {

// What the threads of a team share.
template <class T>
struct Shared {
  const ScanForward<T>& p;
  const CellShape& cell = p.cell->shape;
  const int64_t columns = cell.gates() * p.H;
  Partition partition;
  RightMatrix<T> w_ih, w_hh;
  Workspace<T> workspace;
  T *bias, *x_part, *r_part, *w_ih_buffer, *w_hh_buffer;

  Shared(const ScanForward<T>& params, int threads)
      : p(params),
        partition(cpu::partition(threads, p.steps, p.H, columns, sizeof(T))),
        w_ih(p.C, {{0, columns}}, p.steps.total() >= kWorthTransposing),
        w_hh(p.H, pieces(), p.steps.total() >= kWorthTransposing) {
    workspace.add(&bias, cell.slots() * p.H);
    workspace.add(&x_part, p.steps.most_rows_in_a_block() * columns);
    workspace.add(&r_part, p.steps.N * columns);
    workspace.add(&w_ih_buffer, w_ih.buffer_size());
    workspace.add(&w_hh_buffer, w_hh.buffer_size());
    workspace.allocate();
  }

  int64_t parts() const { return partition.parts.size(); }

  // By units, a part owns its units' columns of each gate: piece g * parts + part.
  std::vector<Range> pieces() const {
    if (!partition.by_units) return {{0, columns}};
    std::vector<Range> result;
    for (int g = 0; g < cell.gates(); ++g) {
      for (const Range& units : partition.parts) result.push_back({g * p.H + units.begin, g * p.H + units.end});
    }
    return result;
  }
};

// One thread's view of the scan: the pieces of work that engine/scan.h asks for.
template <class T>
class Forward {
 public:
  Forward(Shared<T>& shared, const Team& team) : s_(shared), p_(shared.p), team_(team) {}

  void begin() {
    if (team_.rank == 0) start();
    s_.w_ih.pack(team_, p_.w_ih, true, s_.w_ih_buffer);
    s_.w_hh.pack(team_, p_.w_hh, true, s_.w_hh_buffer);
  }

  void project_input(int64_t block) {
    team_.sync();  // the last block's projections have been used
    const Range rows = p_.steps.rows_of(block);
    first_row_ = rows.begin;
    s_.w_ih.multiply(team_, rows.size(), p_.x.from(rows.begin), {s_.x_part, s_.columns}, false);
    team_.sync();
  }

  void step(int64_t t) {
    const int64_t alive = p_.steps.rows(t);
    if (s_.partition.by_units) {
      team_.each(s_.parts(), [&](int64_t part) { product({0, alive}, part); });
      team_.sync();
      team_.each(s_.parts(), [&](int64_t part) { pointwise(t, {0, alive}, s_.partition.parts[part]); });
      team_.sync();
    } else {
      team_.each(s_.parts(), [&](int64_t part) {
        const Range sequences = s_.partition.parts[part].below(alive);
        product(sequences, 0);
        pointwise(t, sequences, {0, p_.H});
      });
    }
  }

 private:
  void start() {
    const int64_t summed = s_.cell.summed * p_.H, apart = s_.cell.apart * p_.H;
    for (int64_t i = 0; i < summed; ++i) s_.bias[i] = (p_.b_ih ? p_.b_ih[i] : T(0)) + (p_.b_hh ? p_.b_hh[i] : T(0));
    for (int64_t i = summed; i < summed + apart; ++i) {
      s_.bias[i] = p_.b_ih ? p_.b_ih[i] : T(0);
      s_.bias[i + apart] = p_.b_hh ? p_.b_hh[i] : T(0);
    }
    for (int k = 0; k < s_.cell.states; ++k) {
      if (p_.h0[k]) {
        std::copy_n(p_.h0[k], p_.steps.N * p_.H, p_.state[k]);
      } else {
        std::fill_n(p_.state[k], p_.steps.N * p_.H, T(0));
      }
    }
  }

  // The recurrent part of the gates: W_hh h.
  void product(Range sequences, int64_t part) const {
    if (!sequences.size()) return;
    const Rows<const T> h{p_.state[0], p_.H};
    const Rows<T> r{s_.r_part, s_.columns};
    for (int64_t piece = part; piece < s_.w_hh.pieces(); piece += s_.parts()) {
      s_.w_hh.multiply(sequences.size(), h.from(sequences.begin), {0, p_.H}, r.from(sequences.begin), false, piece,
                       piece + 1);
    }
  }

  void pointwise(int64_t t, Range sequences, Range units) const {
    if (!sequences.size() || !units.size()) return;
    const int64_t row = p_.steps.first(t) + sequences.begin;
    StepForward<T> step{.rows = sequences.size(), .units = units.size(), .hidden = p_.H};
    step.x = Rows<const T>{s_.x_part, s_.columns}.from(row - first_row_, units.begin);
    step.r = Rows<const T>{s_.r_part, s_.columns}.from(sequences.begin, units.begin);
    step.bias = s_.bias + units.begin;
    for (int k = 0; k < s_.cell.states; ++k) {
      step.state[k] = Rows<T>{p_.state[k], p_.H}.from(sequences.begin, units.begin);
    }
    step.y = p_.y.from(row, units.begin);
    if (p_.record) step.record = p_.record.from(row, units.begin);
    p_.cell->forward(step);
  }

  Shared<T>& s_;
  const ScanForward<T>& p_;
  const Team team_;
  int64_t first_row_ = 0;
};

}  // namespace

template <class T>
void scan_forward(const ScanForward<T>& params) {
  const int threads = useful_threads(params.steps, params.cell->shape.gates() * params.H, params.C + params.H);
  Shared<T> shared(params, threads);
  run_team(threads, [&](const Team& team) {
    Forward<T> forward(shared, team);
    rnnext::scan_forward(forward, params.steps);
  });
}

template void scan_forward<float>(const ScanForward<float>&);
template void scan_forward<double>(const ScanForward<double>&);

}  // namespace rnnext::cpu
