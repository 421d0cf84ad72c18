// What one scan (one direction of one layer over the whole sequence) is given: sizes, and pointers with their shapes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/cell.h"

namespace rnnext {

struct Range {
  int64_t begin = 0, end = 0;

  int64_t size() const { return end > begin ? end - begin : 0; }
  Range below(int64_t limit) const { return {std::min(begin, limit), std::min(end, limit)}; }
};

// The steps of a batch of sequences, and where their rows lie. Step t has rows first(t) .. first(t) + rows(t), one for
// each sequence that is alive then; sequences are sorted by length, longest first, so these are sequences 0 .. rows(t).
// A padded batch is the case in which all are alive at every step.
struct Steps {
  int64_t T = 0, N = 0;
  const int64_t* offsets = nullptr;  // [T + 1] first row of each step; null: N rows at each step
  bool reverse = false;              // scanned from the last step to the first
  int64_t block = 1;                 // steps in a time block

  int64_t first(int64_t t) const { return offsets ? offsets[t] : t * N; }
  int64_t rows(int64_t t) const { return offsets ? offsets[t + 1] - offsets[t] : N; }
  int64_t total() const { return first(T); }

  // The step scanned before t, and how many of t's sequences were alive then; the others start at t.
  int64_t previous(int64_t t) const { return reverse ? t + 1 : t - 1; }
  int64_t continued(int64_t t) const {
    if (reverse) return t + 1 < T ? rows(t + 1) : 0;
    return t > 0 ? rows(t) : 0;
  }

  // Time blocks lie on fixed boundaries, multiples of `block`, whatever the direction.
  int64_t blocks() const { return (T + block - 1) / block; }
  Range steps_of(int64_t b) const { return {b * block, std::min(T, (b + 1) * block)}; }
  Range rows_of(int64_t b) const { return {first(b * block), first(std::min(T, (b + 1) * block))}; }
  int64_t most_rows_in_a_block() const { return rows_of(0).size(); }
};

template <class T>
struct ScanForward {
  const Cell<T>* cell;
  Steps steps;
  int64_t C, H;
  Rows<const T> x;          // [rows, C]
  Rows<const T> w_ih;       // [gates * H, C]
  Rows<const T> w_hh;       // [gates * H, H]
  const T* b_ih;            // [gates * H] or null
  const T* b_hh;            // [gates * H] or null
  const T* h0[kMaxStates];  // [N, H] each, or null: zeros
  T* state[kMaxStates];     // [N, H] each: the carry, at the end the final states
  Rows<T> y;                // [rows, H]
  Rows<T> record;           // [rows, record * H], or null in inference
};

template <class T>
struct ScanBackward {
  const Cell<T>* cell;
  Steps steps;
  int64_t C, H;
  Rows<const T> x;
  Rows<const T> w_ih;
  Rows<const T> w_hh;
  const T* h0[kMaxStates];
  Rows<const T> y;
  Rows<const T> record;
  Rows<const T> dy;       // [rows, H], or null: zeros
  T* dstate[kMaxStates];  // [N, H] each: the carry; in: gradients of the final states, out: of the initial ones
  Rows<T> dx;             // [rows, C], or null: not wanted
  bool accumulate_dx;     // add to dx instead of writing it
  T* dw_ih;               // [gates * H, C], or null
  T* dw_hh;               // [gates * H, H], or null
  T* db_ih;               // [gates * H], or null
  T* db_hh;               // [gates * H], or null

  bool wants_weights() const { return dw_ih || dw_hh || db_ih || db_hh; }
};

}  // namespace rnnext
