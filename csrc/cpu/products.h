// What the scans in both directions share: the weights, made ready for products, and the noise.
#pragma once

#include <vector>

#include "cpu/block_rows.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "cpu/workspace.h"

namespace rnnext::cpu {

// A matrix of weights as the right-hand side of products.
template <class T>
struct WeightMatrix {
  RightMatrix<T> matrix;
  Source<T> w;
  T* buffer = nullptr;
};

// The matrices of one scan. Transposed in the forward direction (x W^T), as they lie in the backward one (da W).
template <class T>
struct WeightMatrices {
  bool transposed;
  std::vector<WeightMatrix<T>> ih, hh;  // [streams]
  std::vector<WeightMatrix<T>> own;     // [streams][matrices]: the cell's own

  void add_buffers(Workspace<T>& workspace) {
    each([&](WeightMatrix<T>& w) { workspace.add(&w.buffer, w.matrix.buffer_size()); });
  }

  // All threads of the team call it, and meet before the first product.
  void pack(const Team& team) {
    each([&](WeightMatrix<T>& w) { w.matrix.pack(team, w.w, transposed, w.buffer); });
  }

 private:
  template <class Work>
  void each(Work work) {
    for (auto* matrices : {&ih, &hh, &own}) {
      for (WeightMatrix<T>& w : *matrices) work(w);
    }
  }
};

// A matrix of stream s of a scan: of the two pointers, at most one is not null.
template <class T>
Source<T> source(const T* values, const BFloat16* bfloat16, int64_t columns) {
  return {{values, columns}, {bfloat16, columns}};
}

template <class T, class Params>
bool uses_bfloat16(const Params& params) {
  return params.operands == Operands::kBFloat16 && has_bfloat16<T>();
}

// One that runs beside others has one thread.
template <class Params>
Machine machine_of(const Params& params) {
  return {params.links ? 1 : available_threads(), caches()};
}

// `params`: of a scan in the direction of `pass`.
template <class T, class Params>
Plan plan_of(const Params& params, Pass pass) {
  Task task{pass, uses_bfloat16<T>(params), sizeof(T)};
  if constexpr (std::is_same_v<Params, ScanBackward<T>>) {
    task.one_sum = params.one_sum;
    task.at_zero = !params.wants_dstate;
  } else {
    task.at_zero = params.at_zero;
  }
  return make_plan(params.shape, params.steps, task, machine_of(params));
}

// The rows of a block, which those who take sequences through all of it have together.
template <class Params>
BlockRows block_rows_of(const Params& params, const Plan& plan) {
  return {params.steps, plan.own_rows ? plan.partition.sequences : std::vector<Range>{{0, params.steps.N}},
          plan.meets_nobody};
}

// Rows that are in no cache near, as those that other threads wrote before the last meeting: asked for together they come
// together, where a product would wait for a few lines at a time.
template <class T>
void fetch(Rows<T> values, int64_t rows, int64_t columns) {
  constexpr int64_t line = 64 / sizeof(T), most = (int64_t{32} << 10) / sizeof(T);
  if (rows * columns > most) return;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; j += line) __builtin_prefetch(values[i] + j);
  }
}

// Whether a team that shares units out meets between stage i and what follows it, where this begins with no product: who
// takes some units of one stage takes them of the next.
inline bool meets_after(const Stage* stages, int i, int count) {
  return i + 1 == count || stages[i].needs_whole_rows() || stages[i + 1].needs_whole_rows();
}

inline Range share_of(Range all, int64_t part, int64_t parts) {
  return {all.begin + all.size() * part / parts, all.begin + all.size() * (part + 1) / parts};
}

// The noise of a block, of the sequences of a group; the threads do not meet after it.
template <class T, class Params>
void draw_noise(const Team& team, const Params& params, const BlockRows& rows, int64_t group, T* const* buffers) {
  const CellShape& cell = *params.shape.cell;
  int64_t column = 0;
  for (int k = 0; k < cell.noises; ++k) {
    const Noise& noise = cell.noise[k];
    const int64_t width = params.shape.width(noise.width);
    const Range steps = team.share(rows.steps().size());
    for (int64_t i = steps.begin; i < steps.end; ++i) {
      const int64_t t = rows.steps().begin + i;
      const Range alive = rows.alive(group, t);
      if (!alive.size()) continue;
      const int64_t row = (noise.per_sequence ? 0 : params.steps.first(t)) + alive.begin;
      const int64_t count = alive.size() * width;
      T* target = buffers[k] + rows.at(group, t, alive.begin) * width;
      if (params.given_noise) {
        const Rows<const T> given = params.given_noise.from(row, column);
        for (int64_t n = 0; n < alive.size(); ++n) std::copy_n(given[n], width, target + n * width);
      } else if (params.noise.drawn) {
        kernels<T>().noise(noise, row * width, count, target, params.noise.seed, params.noise.scan, k);
      } else {
        std::fill_n(target, count, static_cast<T>(noise.expectation()));
      }
    }
    column += width;
  }
}

}  // namespace rnnext::cpu
