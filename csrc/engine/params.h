// What one scan (one direction of one layer over the whole sequence) is given: sizes, and pointers with their shapes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

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
  int64_t checkpoint_every = 0;      // steps; 0: no checkpoints
  Range scanned = {0, T};            // the others are left out

  int64_t first(int64_t t) const { return offsets ? offsets[t] : t * N; }
  int64_t rows(int64_t t) const { return offsets ? offsets[t + 1] - offsets[t] : N; }
  int64_t total() const { return first(T); }

  // Calls work(t) for some steps in the order of the scan, or against it.
  template <class Work>
  void each(Range run, bool against, Work work) const {
    for (int64_t i = 0; i < run.size(); ++i) work(reverse != against ? run.end - 1 - i : run.begin + i);
  }

  // The step scanned before t, and how many of t's sequences were alive then; the others start at t.
  int64_t previous(int64_t t) const { return reverse ? t + 1 : t - 1; }
  int64_t continued(int64_t t) const {
    if (reverse) return t + 1 < scanned.end ? rows(t + 1) : 0;
    return t > scanned.begin ? rows(t) : 0;
  }

  // Time blocks lie on fixed boundaries, multiples of `block`, whatever the direction and whatever is scanned.
  int64_t blocks() const { return blocks_before(T); }
  int64_t blocks_before(int64_t t) const { return (t + block - 1) / block; }
  Range steps_of(int64_t b) const { return {b * block, std::min(T, (b + 1) * block)}; }
  Range rows_of(int64_t b) const { return {first(b * block), first(std::min(T, (b + 1) * block))}; }
  int64_t most_rows_in_a_block() const { return rows_of(0).size(); }
  // Blocks that are scanned, in part or whole, the steps of one that are, and blocks all of whose steps are.
  Range touched_blocks() const { return {scanned.begin / block, blocks_before(scanned.end)}; }
  Range scanned_steps_of(int64_t b) const {
    return {std::max(b * block, scanned.begin), std::min((b + 1) * block, scanned.end)};
  }
  Range whole_blocks() const {
    return {blocks_before(scanned.begin), scanned.end == T ? blocks() : scanned.end / block};
  }

  // Segments lie between checkpoints, at multiples of `checkpoint_every`.
  int64_t segments() const { return (T + checkpoint_every - 1) / checkpoint_every; }
  int64_t segment_of(int64_t t) const { return t / checkpoint_every; }
  bool begins_segment(int64_t t) const {
    if (!checkpoint_every) return false;
    return reverse ? t + 1 == T || (t + 1) % checkpoint_every == 0 : t % checkpoint_every == 0;
  }
  // Of the steps that are left to scan, those of the segment that is next.
  Range until_segment(Range left) const {
    if (!checkpoint_every) return left;
    const int64_t every = checkpoint_every;
    if (reverse) return {std::max(left.begin, (left.end - 1) / every * every), left.end};
    return {left.begin, std::min(left.end, (left.begin / every + 1) * every)};
  }
  // What is scanned again from a checkpoint. Backward takes whole blocks, so of each segment those that begin in it, in
  // the order of the scan: from the checkpoint to the end of the last of them.
  Steps again(int64_t segment) const {
    Steps steps = *this;
    const int64_t begin = segment * checkpoint_every, end = std::min(T, begin + checkpoint_every);
    steps.scanned = reverse ? Range{begin / block * block, end} : Range{begin, std::min(T, blocks_before(end) * block)};
    steps.checkpoint_every = 0;
    return steps;
  }
};

// At least so many rows of each sample are in a time block, where each has its own gradients of the weights.
constexpr int64_t kSampleRows = 64;

// Steps in a time block of at most so many rows: blocks of about equal length.
inline int64_t block_steps(int64_t block_rows, int64_t T, int64_t N, int64_t samples = 0) {
  const int64_t rows = std::max(block_rows, kSampleRows * samples);
  const int64_t most = std::clamp<int64_t>(rows / std::max<int64_t>(N, 1), 1, T);
  const int64_t blocks = (T + most - 1) / most;
  return (T + blocks - 1) / blocks;
}

using BFloat16 = uint16_t;  // its bits

// The matrices of one direction of a layer.
template <class T>
struct Matrices {
  T* w_ih = nullptr;             // [gates * H, C]
  T* w_hh = nullptr;             // [recurrent gates * H, width of h / heads], or null: no recurrent gates
  T* matrix[kMaxMatrices] = {};  // [to, from] each
};

// All its weights; of a cell of two streams there are as many tangents again.
template <class T>
struct Weights : Matrices<T> {
  T* b_ih = nullptr;          // [gates * H], or null
  T* b_hh = nullptr;          // [recurrent gates * H], or null
  T* param[kMaxParams] = {};  // of the width of each
};

// Where the values of a group lie in a row.
struct Layout {
  int64_t offset[kMaxValues];
  int count = 0;
  int64_t columns = 0;

  void add(int64_t width) {
    offset[count++] = columns;
    columns += width;
  }
};

// Sizes of one scan, and where things lie in the rows of its buffers.
struct Shape {
  const CellShape* cell;
  int64_t C;
  int64_t sizes[kMaxSizes];  // the hidden size, then the cell's other sizes
  int64_t heads = 1;         // blocks of W_hh along its diagonal
  Layout record;             // saved values, then the states but h, of each stream
  Layout gradients;          // of each stream: slots, results of products, parameters
  Layout batch_sums, back_batch_sums;

  Shape(const CellShape& shape, int64_t C, const int64_t* values) : cell(&shape), C(C) {
    std::copy_n(values, 1 + shape.sizes, sizes);
    add(record, shape.saved);
    for (int s = 0; s < shape.streams; ++s) {
      for (int k = 1; k < shape.states.count; ++k) record.add(width(shape.states.width[k]));
    }
    gradients = layout_of_gradients(true);
    add(batch_sums, shape.batch_sums);
    add(back_batch_sums, shape.back_batch_sums);
  }

  // Without parameters, these are there but have no columns.
  Layout layout_of_gradients(bool with_params) const {
    Layout layout;
    for (int s = 0; s < cell->streams; ++s) {
      for (int k = 0; k < cell->slots(); ++k) layout.add(H());
      for (int k = 0; k < cell->products; ++k) layout.add(width(cell->product[k].to));
      for (int k = 0; k < cell->params.count; ++k) layout.add(with_params ? width(cell->params.width[k]) : 0);
    }
    return layout;
  }

  int64_t width(int8_t number) const { return number == kOne ? 1 : sizes[number]; }
  int64_t H() const { return sizes[0]; }
  int64_t state_width(int k) const { return width(cell->state_width(k)); }
  int64_t state_columns() const {
    int64_t columns = 0;
    for (int k = 0; k < cell->all_states(); ++k) columns += state_width(k);
    return columns;
  }
  int64_t head_width() const { return state_width(0) / heads; }  // columns of W_hh
  int64_t gate_columns() const { return cell->gates() * H(); }
  int64_t recurrent_columns() const { return cell->recurrent_gates() * H(); }

  void add(Layout& layout, const Group& group) const {
    for (int k = 0; k < group.count; ++k) layout.add(width(group.width[k]));
  }
};

// Where the noise of a scan comes from. Without a seed there is none: each value is its expectation.
struct NoiseSource {
  bool drawn = false;
  uint64_t seed = 0;
  uint32_t scan = 0;  // layer * D + direction
};

// What the operands of a product of float32 may be rounded to, where the device has such products. Sums stay in float32.
enum class Operands : int8_t { kAsGiven, kBFloat16, kHalf };

struct Links;  // to the scans that run at the same time: engine/handoff.h

template <class T>
struct ScanForward {
  Shape shape;
  Steps steps;
  NoiseSource noise;
  Operands operands;
  Rows<const T> x[kStreams];  // [rows, C]
  Weights<const T> w[kStreams];
  const T* h0[kMaxStates];  // [N, width] each, or null: zeros
  bool at_zero;             // the states before all steps are zero
  T* state[kMaxStates];     // [N, width] each: the carry, at the end the final states
  Rows<T> y[kStreams];      // [rows, width of h]
  Rows<T> record;           // [rows, record.columns], or null
  Rows<T> checkpoints;      // [segments * N, all states]: the carry at each checkpoint; or null where there are none
  Rows<T> sequence[kMaxStates];  // [rows, width] each, of the states but h: what they are after every step; or null
  Rows<const T> given_noise;  // [rows, width of all noise], in place of what `noise` says; or null. What there is one
                              // of for all steps lies at the first one
  Matrices<const BFloat16>
      bfloat16_w[kStreams];  // those kept in bfloat16, which are null in w; for backends that read it
  Rows<T> batch_sums;        // [T, batch_sums.columns], written; or read alone, where `given_sums`
  bool given_sums;
  const Links* links = nullptr;  // or null: it is alone
};

template <class T>
struct ScanBackward {
  Shape shape;
  Steps steps;
  NoiseSource noise;
  Operands operands;
  Rows<const T> x[kStreams];
  Weights<const T> w[kStreams];
  const T* h0[kMaxStates];
  Rows<const T> y[kStreams];
  Rows<const T> record;
  Rows<const T> dy[kStreams];  // [rows, width of h], or null: zeros
  T* dstate[kMaxStates];  // [N, width] each: the carry; in: gradients of the final states, out: of the initial ones
  bool wants_dstate;      // of the initial states; else it is left as it is before the last products
  Rows<T> dx[kStreams];   // [rows, C], or null: not wanted
  bool accumulate_dx;     // add to dx instead of writing it
  bool accumulate_dw;
  Weights<T> dw[kStreams];  // those that are wanted; of several samples [samples, ...] each
  int64_t samples;          // row r of x is of sample r % samples
  bool one_sum;             // each of dw is one sum in the order of the rows, whatever the threads
  Rows<const T> dsequence[kMaxStates];
  Rows<const T> given_noise;
  Matrices<const BFloat16> bfloat16_w[kStreams];
  Matrices<BFloat16> bfloat16_dw[kStreams];  // in place of those in dw; each of their values is written once
  Rows<const T> batch_sums;
  bool given_sums;
  const Links* links = nullptr;
  // Of several scans that add to the same dw: what the backend keeps from one to the next, and whether there is a next one.
  std::shared_ptr<void>* kept = nullptr;
  bool goes_on = false;
};

}  // namespace rnnext
