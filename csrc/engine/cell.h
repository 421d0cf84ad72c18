// What the engine knows of a cell: its shape, and the two functions that run one step of it on a tile of rows.
// Plain structs without torch headers: a cell compiled anywhere fills them in.
#pragma once

#include <cstdint>
#include <type_traits>

namespace rnnext {

constexpr int kMaxStates = 4;

// A cell has gates, numbered as in the weight matrices: first the `summed` ones, which see only the sum of the
// input's part (W_ih x + b_ih) and the recurrent part (W_hh h + b_hh), then the `apart` ones, which see both.
// What a step reads, and returns gradients for, are slots: [summed | apart, input's part | apart, recurrent part].
struct CellShape {
  const char* name;
  int summed;
  int apart;
  int states;  // state 0 is the output h, and the operand of the recurrent product
  int saved;   // values a step keeps for its backward

  constexpr int gates() const { return summed + apart; }
  constexpr int slots() const { return summed + 2 * apart; }
  // Columns, in units of H, of what training keeps for each row: the saved values, then states 1, 2, ...
  constexpr int record() const { return saved + states - 1; }
};

// Matrix in row-major order: row i starts at data + i * stride. A stride of 0 repeats one row.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;

  T* operator[](int64_t i) const { return data + i * stride; }
  Rows from(int64_t row, int64_t column = 0) const { return {data + row * stride + column, stride}; }
  explicit operator bool() const { return data != nullptr; }
  operator Rows<const T>() const requires(!std::is_const_v<T>) { return {data, stride}; }
};

// One step for `rows` sequences and `units` hidden units. Gates lie `hidden` apart: gate g of unit u is at g * hidden + u.
template <class T>
struct StepForward {
  int64_t rows, units, hidden;
  Rows<const T> x;            // [rows, gates * hidden]  W_ih x
  Rows<const T> r;            // [rows, gates * hidden]  W_hh h
  const T* bias;              // [slots * hidden]
  Rows<T> state[kMaxStates];  // [rows, hidden]          in: h, c, ...  out: h', c', ...
  Rows<T> y;                  // [rows, hidden]          out: h'
  Rows<T> record;             // [rows, record * hidden] out, or null: nothing is kept
};

template <class T>
struct StepBackward {
  int64_t rows, units, hidden;
  Rows<const T> record;             // as kept by the forward step
  Rows<const T> state[kMaxStates];  // [rows, hidden]          h, c, ... before the step
  Rows<const T> next;               // [rows, hidden]          h' (the other states are in the record)
  Rows<const T> dy;                 // [rows, hidden]          gradient of y, or null
  Rows<T> dstate[kMaxStates];       // [rows, hidden]          in: gradients of h', c', ...  out: of h, c, ...,
                                    //                         less what reaches h through the recurrent product
  Rows<T> da;                       // [rows, slots * hidden]  out: gradients of the slots
};

template <class T>
struct Cell {
  CellShape shape;
  void (*forward)(const StepForward<T>&);
  void (*backward)(const StepBackward<T>&);
};

}  // namespace rnnext
