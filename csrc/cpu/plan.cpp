#include "cpu/plan.h"

#include <cmath>

namespace rnnext::cpu {
namespace {

// With fewer sequences a thread than this, a product is bound by reading the weights; where these take at most so many
// times what the cache of a processor's own holds; and where they stay there.
constexpr double kFewRows = 4, kFewRowsOfSmall = 3, kSmallWeights = 2, kFewRowsOfOwn = 1.5;
// A thread that has more than so many times its share of the rows leaves what can be shared out to the team.
constexpr double kFairShare = 1.1;
// Recurrent weights that take a larger part of the largest cache than this leave it between two steps.
constexpr double kLargeWeights = 0.375;
// Those of one scan stay in the cache of a processor's own, with all else that it reads, if they take at most this part.
constexpr double kOwnWeights = 0.5;
// Multiply-adds for each thread that are worth a meeting of the team; in all, that are worth a team, which costs little where
// processors share a cache and as much as 40 microseconds where not; and where one processor's own cache does not hold the
// weights.
constexpr int64_t kWorthMeeting = 20000, kWorthTeam = 700000, kWorthTeamForLarge = 300000;
// What a row of a step takes besides its multiply-adds, in these.
constexpr int64_t kRowWork = 500;
// Rows of a thread whose projections stay in its processor's own cache, and the most times what that cache holds that input
// weights may take to be read again for so few.
constexpr int64_t kProjectedRows = 128;
constexpr double kLargeInput = 4;
// How many times the threads must have in their hands what one would do alone, for layers to go side by side.
constexpr double kWorthLayersApart = 1.4;
// Rows in all that repay packing a matrix, as measured, where it serves several products and where it serves one. Transposed:
// for each row of the depth, which in place is summed along vectors; at least, and at most.
constexpr double kWorthTransposing = 0.22, kWorthTransposingForOne = 0.3, kLeastTransposing = 8;
constexpr double kMostTransposing = 96, kMostTransposingForOne = 280;
// As it lies: of one that is at most so many times as large as that cache, and of a larger one.
constexpr double kWorthPacking = 384, kLargeToPack = 4, kWorthPackingLarge = 96, kWorthPackingLargeForOne = 240;
// With fewer rows in a product than this, a large matrix that lies in place is read slowly: so many rows, times the square
// root of those and divided by how many such caches it fills, repay packing it in either way.
constexpr double kManyAtOnce = 16, kWorthPackingForFew = 200;
// The most that it takes in bfloat16, whose products take half the time; and as it lies, what it takes.
constexpr double kWorthRounding = 24;

// Of sizes that need not belong to tensors: in double, sums do not overflow.
double weights_of(const Shape& shape) {
  int64_t columns = shape.gate_columns();
  for (int k = 0; k < shape.cell->products; ++k) columns += shape.width(shape.cell->product[k].to);
  return static_cast<double>(columns) * (shape.C + shape.H());
}

// In multiply-adds.
double work_of(const Shape& shape, const Steps& steps) {
  return steps.total() * (weights_of(shape) + kRowWork);
}

double work_worth_team(const Shape& shape, int64_t bytes, const Machine& machine) {
  return weights_of(shape) * bytes > machine.caches.own ? kWorthTeamForLarge : kWorthTeam;
}

double recurrent_weights(const Shape& shape) {
  return static_cast<double>(shape.H()) * shape.recurrent_columns();
}

// [N + 1]: steps of sequences 0 .. n - 1.
std::vector<int64_t> steps_before(const Steps& steps) {
  std::vector<int64_t> before(steps.N + 1, 0);
  for (int64_t t = 0; t < steps.T; ++t) before[steps.rows(t)] += 1;
  for (int64_t n = steps.N - 1, alive = 0; n >= 0; --n) {
    alive += before[n + 1];
    before[n + 1] = alive;  // length of sequence n
  }
  before[0] = 0;
  for (int64_t n = 0; n < steps.N; ++n) before[n + 1] += before[n];
  return before;
}

// Rows of a part's sequences in all.
int64_t rows_of_part(const Steps& steps, Range sequences) {
  if (!steps.offsets) return steps.T * sequences.size();
  int64_t rows = 0;
  for (int64_t t = 0; t < steps.T; ++t) rows += sequences.below(steps.rows(t)).size();
  return rows;
}

// Whether no part has much more to do than another.
bool fair(const Steps& steps, const Partition& partition) {
  const double most = kFairShare * steps.total() / partition.parts;
  return std::all_of(partition.sequences.begin(), partition.sequences.end(),
                     [&](Range sequences) { return rows_of_part(steps, sequences) <= most; });
}

// Equal numbers of steps, not of sequences: the first sequences are the longest.
Partition by_rows(const Steps& steps, int threads) {
  Partition result{false, threads, {}};
  result.sequences.reserve(threads);
  const int64_t total = steps.total();
  const std::vector<int64_t> before = steps.offsets && threads > 1 ? steps_before(steps) : std::vector<int64_t>();
  int64_t begin = 0;
  for (int i = 1; i <= threads; ++i) {
    int64_t end = steps.N;
    if (i < threads) {
      const int64_t target = total / threads * i + total % threads * i / threads;
      end = steps.offsets ? std::lower_bound(before.begin() + begin, before.end(), target) - before.begin()
                          : (target + steps.T - 1) / steps.T;
    }
    result.sequences.push_back({begin, end});
    begin = end;
  }
  return result;
}

Reason reason_of(const Shape& shape, const Steps& steps, int64_t bytes, const Machine& machine) {
  const int threads = machine.threads;
  if (threads == 1) return Reason::kAlone;
  if (work_of(shape, steps) < work_worth_team(shape, bytes, machine)) return Reason::kSmall;
  const double weights = recurrent_weights(shape), share = weights * bytes / machine.caches.own;
  const double few_rows = share <= kOwnWeights ? kFewRowsOfOwn : share <= kSmallWeights ? kFewRowsOfSmall : kFewRows;
  const bool few = steps.N < few_rows * threads;
  const bool large = weights * bytes > kLargeWeights * machine.caches.largest;
  const bool mixed = shape.cell->mixes_sequences();
  if (!few && !large && !mixed) return Reason::kMany;
  const bool worth_meeting = shape.H() >= 2 * kUnitGrain * threads && steps.N * weights >= threads * kWorthMeeting;
  if (!worth_meeting) return mixed ? Reason::kSmall : Reason::kMeetings;
  return mixed ? Reason::kMixed : few ? Reason::kFew : Reason::kLarge;
}

// Of a matrix [columns, depth], as it lies, and products of so many rows at once: packed, if the rows in all repay it.
Packing packing(int64_t rows, double columns, double depth, int64_t at_once, const Task& task, bool bfloat16,
                const Machine& machine) {
  const double share = columns * depth * task.bytes / machine.caches.own;
  const bool one = at_once >= rows;
  double worth = share <= kLargeToPack ? kWorthPacking : one ? kWorthPackingLargeForOne : kWorthPackingLarge;
  if (task.pass == Pass::kForward) {
    worth = one ? std::min(kWorthTransposingForOne * depth, kMostTransposingForOne)
                : std::min(kWorthTransposing * depth, kMostTransposing);
    worth = std::max(worth, kLeastTransposing);
  }
  if (!one && at_once < kManyAtOnce) worth = std::min(worth, kWorthPackingForFew * std::sqrt(at_once) / share);
  if (bfloat16) {
    if (task.pass == Pass::kBackward || worth > kWorthRounding) worth = kWorthRounding;
    return rows < worth ? Packing::kInPlace : Packing::kBFloat16;
  }
  return rows < worth ? Packing::kInPlace : Packing::kPacked;
}

// Whether all parts of W_hh that are multiplied by themselves begin at an even row, as they must in bfloat16: its blocks, and
// in the backward the gates that have a recurrent part apart.
bool parts_at_even_rows(const Shape& shape, Pass pass) {
  const CellShape& cell = *shape.cell;
  if (shape.heads > 1) return shape.H() / shape.heads % 2 == 0 && shape.head_width() % 2 == 0;
  return pass == Pass::kForward || cell.summed == cell.recurrent_gates() || cell.summed * shape.H() % 2 == 0;
}

// One row at a step is bound by reading the weights, packed or not. Of states of zero, one row is multiplied; where it is not
// wanted, no gradient of these is made.
Packing recurrent_packing(const Shape& shape, const Steps& steps, const Task& task, const Machine& machine) {
  const bool halves = task.bfloat16 && parts_at_even_rows(shape, task.pass);
  const int64_t columns = shape.recurrent_columns();
  const int64_t left_out = task.at_zero ? steps.N - (task.pass == Pass::kForward ? 1 : 0) : 0;
  const Packing result = packing(steps.total() - left_out, columns, shape.head_width(), steps.N, task, halves, machine);
  return result == Packing::kPacked && steps.N == 1 ? Packing::kInPlace : result;
}

// Whether so many scans, each alone on a thread, take less than one after the other.
bool worth_apart(const Shape& shape, const Steps& steps, int64_t bytes, int64_t scans, const Machine& machine) {
  const int64_t threads = machine.threads, used = std::min(scans, threads);
  switch (reason_of(shape, steps, bytes, machine)) {
    case Reason::kSmall:
      return scans * work_of(shape, steps) >= work_worth_team(shape, bytes, machine);
    case Reason::kMeetings:
      return used == threads || used > steps.N;
    case Reason::kFew:
    case Reason::kMany:
      return used == threads && steps.N < kFewRowsOfSmall * threads &&
             recurrent_weights(shape) * bytes <= kOwnWeights * machine.caches.own;
    default:
      return false;
  }
}

const char* name_of(Reason reason) {
  switch (reason) {
    case Reason::kAlone:
      return "alone";
    case Reason::kSmall:
      return "small";
    case Reason::kMany:
      return "many";
    case Reason::kFew:
      return "few";
    case Reason::kLarge:
      return "large";
    case Reason::kMixed:
      return "mixed";
    case Reason::kMeetings:
      return "meetings";
  }
  return "";
}

const char* name_of(Packing packing) {
  switch (packing) {
    case Packing::kInPlace:
      return "in place";
    case Packing::kPacked:
      return "packed";
    case Packing::kBFloat16:
      return "packed in bfloat16";
  }
  return "";
}

std::string counted(int64_t count, const char* thing) {
  return std::to_string(count) + " " + thing + (count == 1 ? "" : "s");
}

}  // namespace

Plan make_plan(const Shape& shape, const Steps& steps, const Task& task, const Machine& machine) {
  const Pass pass = task.pass;
  const int64_t bytes = task.bytes;
  const Reason reason = reason_of(shape, steps, bytes, machine);
  const bool by_units = reason == Reason::kFew || reason == Reason::kLarge || reason == Reason::kMixed;
  const int used = reason == Reason::kSmall ? 1 : machine.threads;
  const Packing recurrent = recurrent_packing(shape, steps, task, machine);
  Partition partition = by_units ? Partition{true, used, {}} : by_rows(steps, used);
  // What the threads would hand over otherwise, and the gradients of the weights of each, which are summed in the end.
  const double handed_over = static_cast<double>(steps.total()) * (shape.gate_columns() + shape.C + shape.H());
  const bool own = reason == Reason::kMany && !task.one_sum && fair(steps, partition);
  // Where the threads meet at each block, each block is to be shared out evenly.
  const bool padded = steps.rows(steps.T - 1) == steps.N;
  const bool meets_nobody = own && (pass == Pass::kForward || handed_over >= used * weights_of(shape));
  return {used,
          std::move(partition),
          reason,
          own && (meets_nobody || padded),
          meets_nobody,
          packing(steps.total(), shape.gate_columns(), shape.C, steps.total(), task, task.bfloat16, machine),
          recurrent,
          by_units && pass == Pass::kBackward && steps.N == 1 && recurrent == Packing::kInPlace && shape.heads == 1 &&
              recurrent_weights(shape) * bytes > static_cast<double>(used) * machine.caches.own};
}

int64_t forward_block(const Shape& shape, const Steps& steps, int64_t bytes, const Machine& machine) {
  const double inputs = static_cast<double>(shape.C) * shape.gate_columns() * bytes;
  if (inputs > kLargeInput * machine.caches.own) return steps.block;
  return std::min(steps.block, block_steps(kProjectedRows * machine.threads, steps.T, steps.N));
}

bool directions_apart(const Shape& shape, const Steps& steps, int64_t bytes, const Machine& machine) {
  return worth_apart(shape, steps, bytes, 2, machine);
}

// A thread goes through the steps for each of its layers, and the last thread begins as many blocks later as there are
// threads before it.
bool layers_apart(const Shape& shape, const Steps& steps, int64_t bytes, int64_t layers, const Machine& machine) {
  const int64_t used = std::min<int64_t>(layers, machine.threads), blocks = steps.blocks();
  const int64_t most = (layers + used - 1) / used * blocks + used - 1;
  return layers * blocks >= kWorthLayersApart * most && worth_apart(shape, steps, bytes, layers, machine);
}

std::string to_string(const Plan& plan, const Shape& shape, const Steps& steps) {
  const Partition& partition = plan.partition;
  std::string text = counted(plan.threads, "thread");
  if (plan.threads > 1) text += partition.by_units ? " by units" : " by rows";
  text += std::string(" (") + name_of(plan.reason) + ")";
  if (plan.own_rows) text += plan.meets_nobody ? ", each on its own" : ", each on its own but for dW";
  for (int64_t part = 0; plan.threads > 1 && part < partition.parts; ++part) {
    const Range range = partition.by_units ? partition.units(shape.H(), part) : partition.sequences[part];
    text += part ? ", " : ": ";
    text += range.size() ? std::to_string(range.begin) + "-" + std::to_string(range.end - 1) : "none";
  }
  text += std::string("; W_ih ") + name_of(plan.input);
  if (shape.recurrent_columns()) text += std::string(", W_hh ") + name_of(plan.recurrent);
  if (plan.by_depth) text += " by depth";
  if (shape.cell->matrices) text += std::string(", other matrices ") + name_of(plan.input);
  return text + "; time blocks of " + counted(steps.block, "step");
}

}  // namespace rnnext::cpu
