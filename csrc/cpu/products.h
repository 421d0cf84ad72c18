// What the scans in both directions share: the weights, made ready for products, and the noise.
#pragma once

#include <vector>

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

// `params`: of a scan in the direction of `pass`. One that runs beside others has one thread.
template <class T, class Params>
Plan plan_of(const Params& params, Pass pass) {
  return make_plan(params.shape, params.steps, pass, uses_bfloat16<T>(params), sizeof(T),
                   {params.links ? 1 : available_threads(), caches()});
}

// Rows that other threads wrote before the last meeting: asked for together they come together, where a product would wait
// for a few lines at a time.
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

// The rows of a block that belong to some sequences, counted from its first one.
inline std::vector<Range> rows_of_sequences(const Steps& steps, int64_t block, Range sequences) {
  std::vector<Range> rows;
  const Range all = steps.steps_of(block);
  const int64_t first = steps.rows_of(block).begin;
  for (int64_t t = all.begin; t < all.end; ++t) {
    const Range alive = sequences.below(steps.rows(t));
    const int64_t begin = steps.first(t) - first + alive.begin;
    if (!alive.size()) continue;
    if (!rows.empty() && rows.back().end == begin) {
      rows.back().end += alive.size();
    } else {
      rows.push_back({begin, begin + alive.size()});
    }
  }
  return rows;
}

// The noise of a block; the threads do not meet after it.
template <class T, class Params>
void draw_noise(const Team& team, const Params& params, int64_t block, T* const* buffers) {
  const CellShape& cell = *params.shape.cell;
  int64_t column = 0;
  for (int k = 0; k < cell.noises; ++k) {
    const Noise& noise = cell.noise[k];
    const int64_t width = params.shape.width(noise.width);
    const Range rows = params.steps.rows_of(block), steps = team.share(params.steps.steps_of(block).size());
    for (int64_t i = steps.begin; i < steps.end; ++i) {
      const int64_t t = params.steps.steps_of(block).begin + i, row = params.steps.first(t);
      const int64_t count = params.steps.rows(t) * width;
      T* target = buffers[k] + (row - rows.begin) * width;
      if (params.given_noise) {
        const Rows<const T> given = params.given_noise.from(noise.per_sequence ? 0 : row, column);
        for (int64_t n = 0; n < params.steps.rows(t); ++n) std::copy_n(given[n], width, target + n * width);
      } else if (params.noise.drawn) {
        kernels<T>().noise(noise, noise.per_sequence ? 0 : row * width, count, target, params.noise.seed,
                           params.noise.scan, k);
      } else {
        std::fill_n(target, count, static_cast<T>(noise.expectation()));
      }
    }
    column += width;
  }
}

}  // namespace rnnext::cpu
