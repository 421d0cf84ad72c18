// What the engine knows of a cell: its shape, and the functions that run the stages of one step on a tile of rows.
// Plain structs without torch headers: a cell compiled anywhere fills them in.
#pragma once

#include <cstdint>
#include <type_traits>

namespace rnnext {

constexpr int kStreams = 2;
constexpr int kMaxStates = 16, kMaxSizes = 8, kMaxMatrices = 8, kMaxParams = 32;
constexpr int kMaxValues = 96, kMaxStages = 16, kMaxProducts = 16, kMaxNoise = 8;

// How wide a value is: the hidden size, one value a row, or 1, 2, ..: another size of the cell.
constexpr int8_t kHidden = 0, kOne = -1;

// Some values of a row, and how wide each is.
struct Group {
  int count = 0;
  int8_t width[kMaxValues] = {};
};

// A piece of a step that treats each unit by itself: `width` units a row. What needs all units of a row, or products, of
// what a stage makes is for later stages. A stage adds up the totals first_total .. first_total + totals over its units.
struct Stage {
  int8_t width = kHidden;
  int8_t first_total = 0, totals = 0;
  bool sums_batch = false;  // values over the sequences of the step: whoever takes a unit takes it of all of them

  // Rows can be shared out over threads, units cannot.
  constexpr bool needs_whole_rows() const { return totals > 0 || width == kOne; }
};

// A product with a matrix [to, from] of the cell's own. Its operand is a state before the step, or (where `state` is
// negative) for each stream a value that an earlier stage made, saved for the gradient of the matrix.
struct Product {
  int8_t matrix = 0, to = kHidden, from = kHidden;
  int8_t state = -1;
  int8_t value[kStreams] = {-1, -1};
  int8_t saved[kStreams] = {-1, -1};
  int8_t before = 0;   // the forward stage that it precedes
  int8_t returns = 0;  // the backward stage that the gradient of its operand precedes; for a state, the end
};

// Random values that a step is given; in evaluation their expectation.
struct Noise {
  enum Kind : int8_t { kDropout, kBernoulli, kNormal, kUniform };
  int8_t kind;
  int8_t width;
  bool per_sequence;  // one draw for all steps
  double a, b;        // probability; mean and deviation; low and high

  constexpr double expectation() const { return kind == kDropout ? 1 : kind == kUniform ? (a + b) / 2 : a; }
};

// A cell has gates, numbered as in the weight matrices: first the `summed` ones, which see only the sum of the input's
// part (W_ih x + b_ih) and the recurrent part (W_hh h + b_hh), then the `apart` ones, which see both, then the `input`
// ones, which have no recurrent part. Gradients of gates lie in slots: [summed | apart, input's part | input | apart,
// recurrent part].
//
// A cell of two streams carries values and their tangents (forward-mode derivatives). Then there are as many gates,
// states, parameters, products and matrices again for the tangents, numbered after the others.
struct CellShape {
  const char* name;
  int sizes = 0;  // besides the hidden size
  int streams = 1;
  int summed = 0, apart = 0, input = 0;  // of one stream, as are the next four lines
  Group states{1};                       // state 0 is the output h, and the operand of the recurrent product
  Group params = {};                     // learnt vectors
  int matrices = 0;                      // besides W_ih and W_hh
  int products = 0;
  Product product[kMaxProducts] = {};
  int noises = 0;
  Noise noise[kMaxNoise] = {};
  int forward_stages = 1;
  Stage forward[kMaxStages] = {};
  int backward_stages = 1;
  Stage backward[kMaxStages] = {};
  Group saved = {};                     // what a step keeps for its backward
  Group values = {}, back_values = {};  // what stages hand to later ones
  // Sums over the sequences of a step, of each unit apart: those of both streams. The forward's are kept, once for a step.
  Group batch_sums = {}, back_batch_sums = {};

  constexpr int gates() const { return summed + apart + input; }
  constexpr int recurrent_gates() const { return summed + apart; }
  constexpr int slots() const { return gates() + apart; }
  constexpr int all_states() const { return streams * states.count; }
  constexpr int all_params() const { return streams * params.count; }
  constexpr int all_products() const { return streams * products; }
  constexpr int8_t state_width(int k) const { return states.width[k % states.count]; }
  constexpr int8_t param_width(int k) const { return params.width[k % params.count]; }
  // Gradients of one stream: of the slots, then of the products' results, then of the parameters.
  constexpr int gradients() const { return slots() + products + params.count; }
  constexpr int totals() const { return totals_of(forward, forward_stages); }
  constexpr int back_totals() const { return totals_of(backward, backward_stages); }
  constexpr bool mixes_sequences() const { return batch_sums.count > 0; }

 private:
  static constexpr int totals_of(const Stage* stages, int count) {
    int last = 0;
    for (int i = 0; i < count; ++i) {
      const int end = stages[i].first_total + stages[i].totals;
      last = end > last ? end : last;
    }
    return last;
  }
};

// Matrix in row-major order: row i starts at data + i * stride. A stride of 0 repeats one row. (What is constexpr here and
// below can be called by device code.)
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;

  constexpr T* operator[](int64_t i) const { return data + i * stride; }
  constexpr Rows from(int64_t row, int64_t column = 0) const { return {data + row * stride + column, stride}; }
  constexpr explicit operator bool() const { return data != nullptr; }
  template <class U>
  requires(std::is_same_v<U, const T> && !std::is_const_v<T>) constexpr operator Rows<U>() const {
    return {data, stride};
  }
};

// Values of several widths side by side in a row: value k begins at column offset[k].
template <class T>
struct Values {
  Rows<T> rows;
  const int64_t* offset = nullptr;

  constexpr T* at(int64_t row, int k) const { return rows[row] + offset[k]; }
  constexpr Values from(int64_t row) const { return {rows.from(row), offset}; }
};

// Sums over the sequences of a step, side by side: sum k begins at offset[k].
template <class T>
struct BatchSums {
  T* data = nullptr;
  const int64_t* offset = nullptr;

  constexpr T* at(int k) const { return data + offset[k]; }
};

// A stage of one step, for `rows` sequences and the units begin .. end; the pointers are those of unit 0.
template <class T>
struct StepForward {
  int64_t rows, begin, end;
  const int64_t* sizes;       // the hidden size H, then the cell's other sizes
  Rows<const T> x[kStreams];  // [rows, gates * H]            W_ih x
  Rows<const T> r[kStreams];  // [rows, recurrent gates * H]  W_hh h
  const T* bias[kStreams];    // [slots * H]
  const T* const* param;      // [all params] of the width of each
  Rows<const T> noise[kMaxNoise];
  Rows<T> state[kMaxStates];  // in: h, c, ...  out: h', c', ...
  Rows<T> y[kStreams];        // out: h'
  Values<T> record;           // out: saved, then the states but h of each stream; or null: nothing is kept
  Values<T> values;           // between stages
  Values<T> products;         // results of the products, both streams
  Rows<T> totals;             // [rows, totals]
  int64_t batch;              // sequences of the step, which are these rows where they are summed
  BatchSums<T> batch_sums;    // out; or where `given_sums`, in
  bool given_sums;
};

template <class T>
struct StepBackward {
  int64_t rows, begin, end;
  const int64_t* sizes;
  Values<const T> record;           // as kept by the forward step
  Rows<const T> state[kMaxStates];  // h, c, ... before the step
  Rows<const T> next[kStreams];     // h' (the other states are in the record)
  Rows<const T> dy[kStreams];       // gradient of y, or null
  const T* const* param;
  Rows<const T> noise[kMaxNoise];
  Rows<T> dstate[kMaxStates];  // in: gradients of h', c', ...  out: of h, c, ..., less what reaches them through
                               //     products whose operand they are
  Values<T> gradients;         // out, of each stream: slots, results of the products, parameters
  Values<T> param_sums;        // in and out, [rows, all params]: gradients of parameters are added here; or null
  Values<const T> operands;    // gradients of the products' operands, both streams
  Values<T> values;            // between stages
  Rows<T> totals;              // [rows, back totals]
  int64_t batch;
  BatchSums<const T> forward_sums;  // of the forward step; where they were given, nothing flows through them
  bool given_sums;
  BatchSums<T> batch_sums;  // of the backward
};

template <class T>
struct Cell {
  CellShape shape;
  void (*forward[kMaxStages])(const StepForward<T>&);
  void (*backward[kMaxStages])(const StepBackward<T>&);
};

}  // namespace rnnext
