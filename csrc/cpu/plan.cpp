#include "cpu/plan.h"

namespace rnnext::cpu {
namespace {

// With fewer sequences a thread than this, a product is bound by reading the weights.
constexpr int64_t kFewRows = 4;
// Recurrent weights of more bytes than this leave the caches between two steps.
constexpr int64_t kLargeWeights = 12 << 20;
// Of so many, those of both directions stay in the caches of a processor's own.
constexpr int64_t kOwnWeights = 512 << 10;
// Multiply-adds for each thread that are worth a meeting of the team; in all, that are worth a team.
constexpr int64_t kWorthMeeting = 20000, kWorthTeam = 100000;
// Rows in all that repay packing a matrix: transposed for a block, transposed for steps, as it lies.
constexpr int64_t kWorthTransposing = 64, kWorthTransposingForSteps = 32, kWorthPacking = 8;
// The same in bfloat16, whose products take half the time, transposed or not.
constexpr int64_t kWorthRounding = 16;

// Of sizes that need not belong to tensors: in double, sums do not overflow.
double work_of(const Shape& shape, const Steps& steps) {
  int64_t columns = shape.gate_columns();
  for (int k = 0; k < shape.cell->products; ++k) columns += shape.width(shape.cell->product[k].to);
  return static_cast<double>(steps.total()) * columns * (shape.C + shape.H());
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

Reason reason_of(const Shape& shape, const Steps& steps, int64_t bytes, int threads) {
  if (threads == 1) return Reason::kAlone;
  if (work_of(shape, steps) < kWorthTeam) return Reason::kSmall;
  const double weights = recurrent_weights(shape);
  const bool few = steps.N < kFewRows * threads;
  const bool large = weights * bytes > kLargeWeights;
  const bool mixed = shape.cell->mixes_sequences();
  if (!few && !large && !mixed) return Reason::kMany;
  const bool worth_meeting = shape.H() >= 2 * kUnitGrain * threads && steps.N * weights >= threads * kWorthMeeting;
  if (!worth_meeting) return mixed ? Reason::kSmall : Reason::kMeetings;
  return mixed ? Reason::kMixed : few ? Reason::kFew : Reason::kLarge;
}

// Packed, if so many rows in all repay it.
Packing packing(const Steps& steps, bool bfloat16, int64_t worth) {
  if (bfloat16) return steps.total() < std::min(worth, kWorthRounding) ? Packing::kInPlace : Packing::kBFloat16;
  return steps.total() < worth ? Packing::kInPlace : Packing::kPacked;
}

// The blocks and gates of W_hh are multiplied by themselves: in bfloat16 they must begin at an even row. One row at a
// step is bound by reading the weights, packed or not.
Packing recurrent_packing(const Shape& shape, const Steps& steps, bool bfloat16, int64_t worth) {
  const bool halves = shape.H() / shape.heads % 2 == 0 && shape.head_width() % 2 == 0;
  const Packing result = packing(steps, bfloat16 && halves, worth);
  return result == Packing::kPacked && steps.N == 1 ? Packing::kInPlace : result;
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

Plan make_plan(const Shape& shape, const Steps& steps, Pass pass, bool bfloat16, int64_t bytes, int threads) {
  const bool forward = pass == Pass::kForward;
  const Reason reason = reason_of(shape, steps, bytes, threads);
  const bool by_units = reason == Reason::kFew || reason == Reason::kLarge || reason == Reason::kMixed;
  const int used = reason == Reason::kSmall ? 1 : threads;
  return {used, by_units ? Partition{true, used, {}} : by_rows(steps, used), reason,
          packing(steps, bfloat16, forward ? kWorthTransposing : kWorthPacking),
          recurrent_packing(shape, steps, bfloat16, forward ? kWorthTransposingForSteps : kWorthPacking)};
}

bool side_by_side(const Shape& shape, const Steps& steps, int64_t bytes, int threads) {
  switch (reason_of(shape, steps, bytes, threads)) {
    case Reason::kSmall:
      return 2 * work_of(shape, steps) >= kWorthTeam;
    case Reason::kMeetings:
      return threads == 2 || steps.N == 1;
    case Reason::kFew:
      return threads == 2 && recurrent_weights(shape) * bytes <= kOwnWeights;
    default:
      return false;
  }
}

std::string to_string(const Plan& plan, const Shape& shape, const Steps& steps) {
  const Partition& partition = plan.partition;
  std::string text = counted(plan.threads, "thread");
  if (plan.threads > 1) text += partition.by_units ? " by units" : " by rows";
  text += std::string(" (") + name_of(plan.reason) + ")";
  for (int64_t part = 0; plan.threads > 1 && part < partition.parts; ++part) {
    const Range range = partition.by_units ? partition.units(shape.H(), part) : partition.sequences[part];
    text += part ? ", " : ": ";
    text += range.size() ? std::to_string(range.begin) + "-" + std::to_string(range.end - 1) : "none";
  }
  text += std::string("; W_ih ") + name_of(plan.input);
  if (shape.recurrent_columns()) text += std::string(", W_hh ") + name_of(plan.recurrent);
  if (shape.cell->matrices) text += std::string(", other matrices ") + name_of(plan.input);
  return text + "; time blocks of " + counted(steps.block, "step");
}

}  // namespace rnnext::cpu
