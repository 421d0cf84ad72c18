// From a scan to one stage of one step: where the stage finds and leaves what it works on. The same for every backend.
#pragma once

#include "engine/params.h"

namespace rnnext {

// The product of the cell that uses one of its own matrices.
inline const Product& product_with(const CellShape& cell, int matrix) {
  const Product* product = cell.product;
  while (product->matrix != matrix) ++product;
  return *product;
}

// What lies between the products and the stages of a forward scan.
template <class T>
struct ForwardBuffers {
  Layout value_layout, product_layout;
  T* bias[kStreams] = {};    // [slots * H]
  T* x_part[kStreams] = {};  // [rows of a block, gates * H]
  T* r_part[kStreams] = {};  // [N, recurrent gates * H]
  T* values = nullptr;       // [N, value columns]
  T* product_values = nullptr;
  T* totals = nullptr;
  T* noise[kMaxNoise] = {};  // [rows of a block, width]

  explicit ForwardBuffers(const Shape& shape) {
    const CellShape& cell = *shape.cell;
    shape.add(value_layout, cell.values);
    for (int s = 0; s < cell.streams; ++s) {
      for (int k = 0; k < cell.products; ++k) product_layout.add(shape.width(cell.product[k].to));
    }
  }

  // Calls add(buffer, count) for each.
  template <class Add>
  void each(const Shape& shape, const Steps& steps, Add add) {
    const CellShape& cell = *shape.cell;
    const int64_t rows = steps.most_rows_in_a_block(), N = steps.N;
    for (int s = 0; s < cell.streams; ++s) {
      add(&bias[s], cell.slots() * shape.H());
      add(&x_part[s], rows * shape.gate_columns());
      add(&r_part[s], N * shape.recurrent_columns());
    }
    add(&values, N * value_layout.columns);
    add(&product_values, N * product_layout.columns);
    add(&totals, N * cell.totals());
    for (int k = 0; k < cell.noises; ++k) add(&noise[k], rows * shape.width(cell.noise[k].width));
  }
};

// Where parameters are summed, the stages add up their gradients over the steps of a block, for each sequence apart: sums
// that do not depend on who takes which sequence, in memory that stays in a cache.
template <class T>
struct BackwardBuffers {
  // As Shape::gradients; parameters that are summed have no columns, and rows have an odd number of cache lines: a column's
  // values, which the gradients of the weights read, would share few places of a cache at a power of two.
  Layout gradient_layout;
  Layout param_layout;  // of those
  Layout value_layout, operand_layout;
  T* zeros = nullptr;       // as wide as the widest state
  T* gradients = nullptr;   // [rows of a block, gradient columns]
  T* param_sums = nullptr;  // [N, param columns]
  T* values = nullptr;      // [N, value columns]
  T* operands = nullptr;    // [N, operand columns]: gradients of products' operands
  T* totals = nullptr;
  T* batch_sums = nullptr;  // of one step
  T* noise[kMaxNoise] = {};
  int64_t widest = 1;

  explicit BackwardBuffers(const Shape& shape, bool sum_params = false) : gradient_layout(shape.gradients) {
    const CellShape& cell = *shape.cell;
    if (sum_params) {
      constexpr int64_t line = 64 / sizeof(T);
      gradient_layout = shape.layout_of_gradients(false);
      gradient_layout.columns = ((gradient_layout.columns + line - 1) / line | 1) * line;
    }
    shape.add(value_layout, cell.back_values);
    for (int s = 0; s < cell.streams; ++s) {
      if (sum_params) shape.add(param_layout, cell.params);
      for (int k = 0; k < cell.products; ++k) operand_layout.add(shape.width(cell.product[k].from));
    }
    for (int k = 0; k < cell.all_states(); ++k) widest = std::max(widest, shape.state_width(k));
  }

  template <class Add>
  void each(const Shape& shape, const Steps& steps, Add add) {
    const CellShape& cell = *shape.cell;
    const int64_t rows = steps.most_rows_in_a_block(), N = steps.N;
    add(&zeros, widest);
    add(&gradients, rows * gradient_layout.columns);
    add(&param_sums, N * param_layout.columns);
    add(&values, N * value_layout.columns);
    add(&operands, N * operand_layout.columns);
    add(&totals, N * cell.back_totals());
    add(&batch_sums, shape.back_batch_sums.columns);
    for (int k = 0; k < cell.noises; ++k) add(&noise[k], rows * shape.width(cell.noise[k].width));
  }
};

// Pointers to the parameters of all streams.
template <class T, class Scan>
void params_of(const Scan& p, const T** params) {
  const CellShape& cell = *p.shape.cell;
  for (int s = 0; s < cell.streams; ++s) {
    for (int k = 0; k < cell.params.count; ++k) params[s * cell.params.count + k] = p.w[s].param[k];
  }
}

// A stage of step t for some sequences and units. `block_row`: of the first of them, in what holds the rows of a block.
// `params`: as params_of fills it.
template <class T>
StepForward<T> forward_step(const ScanForward<T>& p, const ForwardBuffers<T>& b, int64_t block_row, int64_t t,
                            Range sequences, Range units, const T* const* params) {
  const Shape& shape = p.shape;
  const CellShape& cell = *shape.cell;
  const int64_t n = sequences.begin, row = p.steps.first(t) + n;
  StepForward<T> step;
  step.rows = sequences.size(), step.begin = units.begin, step.end = units.end;
  step.sizes = shape.sizes;
  step.param = params;
  for (int s = 0; s < cell.streams; ++s) {
    step.x[s] = Rows<const T>{b.x_part[s], shape.gate_columns()}.from(block_row);
    step.r[s] = Rows<const T>{b.r_part[s], shape.recurrent_columns()}.from(n);
    step.bias[s] = b.bias[s];
    step.y[s] = p.y[s].from(row);
  }
  for (int k = 0; k < cell.noises; ++k) {
    step.noise[k] = Rows<const T>{b.noise[k], shape.width(cell.noise[k].width)}.from(block_row);
  }
  for (int k = 0; k < cell.all_states(); ++k) step.state[k] = Rows<T>{p.state[k], shape.state_width(k)}.from(n);
  if (p.record) step.record = {p.record.from(row), shape.record.offset};
  step.values = Values<T>{{b.values, b.value_layout.columns}, b.value_layout.offset}.from(n);
  step.products = Values<T>{{b.product_values, b.product_layout.columns}, b.product_layout.offset}.from(n);
  if (cell.totals()) step.totals = Rows<T>{b.totals, cell.totals()}.from(n);
  step.batch = p.steps.rows(t);
  step.batch_sums = {p.batch_sums[t], shape.batch_sums.offset};
  step.given_sums = p.given_sums;
  return step;
}

// State k before step t, from sequence n on: of sequences that began before (`continued`) it lies among the outputs, of
// the others it is the initial state.
template <class T>
Rows<const T> states_before(const ScanBackward<T>& p, int k, int64_t t, int64_t n, bool continued, const T* zeros) {
  const CellShape& cell = *p.shape.cell;
  const int stream = k / cell.states.count, i = k % cell.states.count;
  if (!continued) {
    return p.h0[k] ? Rows<const T>{p.h0[k], p.shape.state_width(k)}.from(n) : Rows<const T>{zeros, 0};
  }
  const int64_t row = p.steps.first(p.steps.previous(t)) + n;
  if (i == 0) return p.y[stream].from(row);
  const int recorded = cell.saved.count + stream * (cell.states.count - 1) + i - 1;
  return p.record.from(row, p.shape.record.offset[recorded]);
}

// The same backward; all of `sequences` continue, or none does.
template <class T>
StepBackward<T> backward_step(const ScanBackward<T>& p, const BackwardBuffers<T>& b, int64_t block_row, int64_t t,
                              Range sequences, Range units, bool continued, const T* const* params) {
  const Shape& shape = p.shape;
  const CellShape& cell = *shape.cell;
  const int64_t n = sequences.begin, row = p.steps.first(t) + n;
  StepBackward<T> step;
  step.rows = sequences.size(), step.begin = units.begin, step.end = units.end;
  step.sizes = shape.sizes;
  step.param = params;
  step.record = {p.record.from(row), shape.record.offset};
  for (int s = 0; s < cell.streams; ++s) {
    step.next[s] = p.y[s].from(row);
    if (p.dy[s]) step.dy[s] = p.dy[s].from(row);
  }
  for (int k = 0; k < cell.noises; ++k) {
    step.noise[k] = Rows<const T>{b.noise[k], shape.width(cell.noise[k].width)}.from(block_row);
  }
  for (int k = 0; k < cell.all_states(); ++k) {
    step.state[k] = states_before(p, k, t, n, continued, static_cast<const T*>(b.zeros));
    step.dstate[k] = Rows<T>{p.dstate[k], shape.state_width(k)}.from(n);
  }
  step.gradients = Values<T>{{b.gradients, b.gradient_layout.columns}, b.gradient_layout.offset}.from(block_row);
  step.param_sums = Values<T>{{b.param_sums, b.param_layout.columns}, b.param_layout.offset}.from(n);
  step.operands = {Rows<const T>{b.operands, b.operand_layout.columns}.from(n), b.operand_layout.offset};
  step.values = Values<T>{{b.values, b.value_layout.columns}, b.value_layout.offset}.from(n);
  if (cell.back_totals()) step.totals = Rows<T>{b.totals, cell.back_totals()}.from(n);
  step.batch = p.steps.rows(t);
  step.forward_sums = {p.batch_sums[t], shape.batch_sums.offset};
  step.given_sums = p.given_sums;
  step.batch_sums = {b.batch_sums, shape.back_batch_sums.offset};
  return step;
}

}  // namespace rnnext
