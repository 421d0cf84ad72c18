// The planner: how a scan is done, from its sizes, the threads and the caches there are. All that is decided before it
// begins is decided here, by a pure function; tests/test_planner.py pins what it says.
#pragma once

#include <string>

#include "cpu/caches.h"
#include "cpu/gemm.h"
#include "cpu/partition.h"

namespace rnnext::cpu {

enum class Pass { kForward, kBackward };

// Why the work is split as it is.
enum class Reason {
  kAlone,     // one thread is all there is
  kSmall,     // too little work in all for a team
  kMany,      // sequences, for weights that stay in the caches
  kFew,       // sequences, so that reading the weights bounds a product
  kLarge,     // weights, which leave the caches between two steps
  kMixed,     // sequences, which are summed at each step
  kMeetings,  // few sequences or large weights, but too little work in a step for the team to meet at each
};

struct Plan {
  int threads;
  Partition partition;
  Reason reason;
  bool own_rows;      // a thread projects the input of its own sequences, and makes their dx: these stay in its caches
  bool meets_nobody;  // and, in the backward, sums their gradients of the weights, and meets the others only in the end
  Packing input;      // W_ih and the cell's own matrices
  Packing recurrent;  // W_hh
  // Whether a thread of a team multiplies by whole rows of W_hh, of which it takes some, in place of some of its columns; then
  // their sums are added up.
  bool by_depth;
};

struct Machine {
  int threads;  // those there are
  Caches caches;
};

// What is planned, besides its sizes.
struct Task {
  Pass pass;
  bool bfloat16;         // products are of bfloat16 where they can be
  int64_t bytes;         // of one value
  bool one_sum = false;  // as in ScanBackward
  bool at_zero = false;  // sequences begin at states of zero; in the backward: no gradient of these is wanted
};

Plan make_plan(const Shape& shape, const Steps& steps, const Task& task, const Machine& machine);

// The steps in a time block of the forward, at most those of `steps`: of small input weights, which are read again for each
// block, so few that the projections of a block stay in the processors' own caches.
int64_t forward_block(const Shape& shape, const Steps& steps, int64_t bytes, const Machine& machine);

// Whether scans that need not wait for each other go side by side, each alone on a thread: where that leaves fewer threads
// without work, or saves them from meeting at each step. The two directions of a layer:
bool directions_apart(const Shape& shape, const Steps& steps, int64_t bytes, const Machine& machine);

// Or the layers of a stack, each a time block behind the one before it; `steps`: with the blocks that it would have then.
bool layers_apart(const Shape& shape, const Steps& steps, int64_t bytes, int64_t layers, const Machine& machine);

// One line, such as "2 threads by units (few): 0-31, 32-63; W_ih packed, W_hh in place; time blocks of 35 steps".
std::string to_string(const Plan& plan, const Shape& shape, const Steps& steps);

}  // namespace rnnext::cpu
