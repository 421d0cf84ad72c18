// A scan in one launch. The recurrent weights stay in shared memory, the states of a slice of units too; what other slices
// need of a step goes through memory (the exchange), and flags say that it is there. For cells of one stage whose only
// product is the recurrent one.
//
// Two buffers take turns in the exchange. A block writes step i + 1 over step i - 1 only after it has seen from all others
// that they have written step i, and each did that after all its threads had read step i - 1. All blocks of the grid run at
// the same time (a cooperative launch), so that waiting for each other ends.
#pragma once

#include "cuda/scalar.h"

#include "cuda/persistent.h"
#include "cuda/step.cuh"

namespace rnnext::gpu {

// Tiles of products of each kind of operand; see multiply_tf32 in device.h.
struct BFloat16Operand {
  static constexpr int words = 2;
  using Element = uint16_t;
  RNNEXT_INLINE static Element round(float x) { return bfloat16_bits(x); }
  RNNEXT_INLINE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool) {
    multiply_bfloat16(d, a, b);
  }
};

struct HalfOperand {
  static constexpr int words = 2;
  using Element = uint16_t;
  RNNEXT_INLINE static Element round(float x) { return half_bits(x); }
  RNNEXT_INLINE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool) {
    multiply_half(d, a, b);
  }
};

// Values stay float32. Split: x = high + low, both of the tensor cores' format; low times low has no weight. An infinity or
// NaN is in the product of the high parts alone: times a low part that is zero it would give NaN.
struct FloatOperand {
  static constexpr int words = 1;
  using Element = uint32_t;
  RNNEXT_INLINE static Element round(float x) { return Vec<float>(x).bits(); }

  template <int N>
  struct Split {
    uint32_t high[N], low[N], finite[N];  // the last: high, or 0

    RNNEXT_INLINE explicit Split(const uint32_t (&x)[N]) {
      for (int i = 0; i < N; ++i) {
        const float value = Vec<float>::from_bits(x[i]).v;
        high[i] = tf32_bits(value);
        const float rest = value - Vec<float>::from_bits(high[i]).v;
        const bool is_finite = rest == rest;
        low[i] = is_finite ? tf32_bits(rest) : 0;
        finite[i] = is_finite ? high[i] : 0;
      }
    }
  };

  RNNEXT_INLINE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool exact) {
    const Split<4> x(a);
    const Split<2> y(b);
    if (exact) {
      multiply_tf32(d, x.low, y.finite);
      multiply_tf32(d, x.finite, y.low);
    }
    multiply_tf32(d, x.high, y.high);
  }
};

// What a block is: its slice of units, its group of sequences, its memory.
template <class O>
struct Slice {
  using Element = typename O::Element;

  const cuda::PersistentScan& p;
  const Tiling& tiling;
  const int unit, units;  // the first one, and how many
  const int64_t first;    // sequence
  const int sequences;
  uint32_t* const weights;   // [rows][depth][32 lanes][4]
  float* const sums;         // [warps][sequences][sums_stride]
  float* const carry;        // [states][sequences][units of a whole slice]
  uint32_t* const exchange;  // [2][exchange_words]
  unsigned* const flags;     // [slices]

  RNNEXT_INLINE Slice(const cuda::PersistentScan& scan)
      : p(scan),
        tiling(scan.tiling),
        unit(blockIdx.x * tiling.units),
        units(min(tiling.units, static_cast<int>(scan.H) - unit)),
        first(scan.begin + int64_t{blockIdx.y} * tiling.sequences()),
        sequences(
            static_cast<int>(max(int64_t{0}, min(int64_t{tiling.sequences()}, scan.begin + scan.sequences - first)))),
        weights(reinterpret_cast<uint32_t*>(shared_memory())),
        sums(reinterpret_cast<float*>(weights + tiling.weight_words())),
        carry(sums + tiling.sums_words()),
        exchange(scan.exchange + blockIdx.y * 2 * tiling.exchange_words()),
        flags(scan.flags + blockIdx.y * tiling.slices) {}

  RNNEXT_INLINE static int min(int a, int b) { return a < b ? a : b; }
  RNNEXT_INLINE static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
  RNNEXT_INLINE static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

  RNNEXT_INLINE int64_t first_row(int64_t t) const { return p.offsets ? p.offsets[t] : t * p.N; }
  // Of this group's sequences, how many are alive at step t.
  RNNEXT_INLINE int alive(int64_t t) const {
    const int64_t rows = p.offsets ? p.offsets[t + 1] - p.offsets[t] : p.N;
    return static_cast<int>(max(0, min(int64_t{sequences}, rows - first)));
  }

  // A slice's rows of a state, which Units finds by the numbers of the whole.
  RNNEXT_INLINE Rows<float> state(int k) const {
    return {carry + k * tiling.sequences() * tiling.units - unit, tiling.units};
  }

  // value_of(row, k): of the weights.
  template <class ValueOf>
  RNNEXT_INLINE void load_weights(int rows, int depth, ValueOf value_of) const {
    const int words = static_cast<int>(tiling.weight_words());
    for (int i = threadIdx.x; i < words; i += kPersistentThreads) {
      const int r = i % 4, lane = i / 4 % 32, depth_tile = i / 128 % tiling.depth, row_tile = i / 128 / tiling.depth;
      uint32_t word = 0;
      for (int v = 0; v < O::words; ++v) {
        const WeightPlace place = weight_place(O::words, row_tile, depth_tile, lane, r, v);
        const float value = place.row < rows && place.k < depth ? value_of(place.row, place.k) : 0.0f;
        word |= static_cast<uint32_t>(O::round(value)) << (32 / O::words * v % 32);
      }
      weights[i] = word;
    }
  }

  // A unit of a sequence of this slice. Each thread has always the same ones, so that what is of one place needs no barrier:
  //   for (Place at = first_place(); at.i < places(alive); at = after(at)) ...
  struct Place {
    int i, n;
    int64_t unit;
  };
  RNNEXT_INLINE Place place(int i) const { return {i, i / units, unit + i % units}; }
  RNNEXT_INLINE Place first_place() const { return place(threadIdx.x); }
  RNNEXT_INLINE Place after(Place at) const { return place(at.i + kPersistentThreads); }
  RNNEXT_INLINE int places(int count) const { return count * units; }

  RNNEXT_INLINE void publish(int buffer, int64_t k, int n, float value) const {
    Element* const values = reinterpret_cast<Element*>(exchange + buffer * tiling.exchange_words());
    values[exchange_place(O::words, tiling.columns, static_cast<int>(k), n)] = O::round(value);
  }

  // Tells the others that `count` times this slice has published.
  RNNEXT_INLINE void post(unsigned count) const {
    __syncthreads();
    if (threadIdx.x == 0) store_release(flags + blockIdx.x, count);
  }

  // Waits until all have.
  RNNEXT_INLINE void await(unsigned count) const {
    for (int i = threadIdx.x; i < tiling.slices; i += kPersistentThreads) {
      while (load_acquire(flags + i) < count) pause();
    }
    __syncthreads();
  }

  // sums = weights times what is in a buffer, a part from each warp.
  RNNEXT_INLINE void multiply(int buffer) const {
    const uint2* const operand = reinterpret_cast<const uint2*>(exchange + buffer * tiling.exchange_words());
    for (int row_tile = 0; row_tile < tiling.rows; row_tile += 2) {
      const bool two = row_tile + 1 < tiling.rows;
      if (tiling.columns <= 3) {
        two ? multiply_tiles<2, 3>(operand, row_tile) : multiply_tiles<1, 3>(operand, row_tile);
      } else {
        two ? multiply_tiles<2, 8>(operand, row_tile) : multiply_tiles<1, 8>(operand, row_tile);
      }
    }
    __syncthreads();
  }

  // Row `row` of the product, for sequence n. The parts are added in one order.
  RNNEXT_INLINE float sum(int row, int n) const {
    float total = 0.0f;
    for (int warp = 0; warp < kPersistentWarps; ++warp) {
      total += sums[(warp * tiling.sequences() + n) * tiling.sums_stride() + row];
    }
    return total;
  }

 private:
  // Some tiles of rows, by at most so many of columns.
  template <int Rows, int Columns>
  RNNEXT_INLINE void multiply_tiles(const uint2* operand, int row_tile) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, columns = tiling.columns;
    const bool exact = p.precision == Precision::kSplit;
    const uint4* const rows = reinterpret_cast<const uint4*>(weights) + row_tile * tiling.depth * 32 + lane;
    // So many tiles of the operand are on their way at a time: each takes the time of a journey to the second-level cache.
    constexpr int kAhead = Columns <= 3 ? 8 : 2;
    float d[Rows][Columns][4] = {};
    for (int first = warp; first < tiling.depth; first += kPersistentWarps * kAhead) {
      uint32_t b[kAhead][Columns][2] = {};
#pragma unroll
      for (int s = 0; s < kAhead; ++s) {
        const int tile = first + s * kPersistentWarps;
#pragma unroll
        for (int j = 0; j < Columns; ++j) {
          if (tile < tiling.depth && j < columns) {
            const uint2 words = load_shared_by_blocks(operand + (tile * columns + j) * 32 + lane);
            b[s][j][0] = words.x, b[s][j][1] = words.y;
          }
        }
      }
#pragma unroll
      for (int s = 0; s < kAhead; ++s) {
        const int tile = first + s * kPersistentWarps;
        if (tile >= tiling.depth) break;
#pragma unroll
        for (int i = 0; i < Rows; ++i) {
          const uint4 words = rows[(i * tiling.depth + tile) * 32];
          const uint32_t a[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
          for (int j = 0; j < Columns; ++j) {
            if (j < columns) O::multiply(d[i][j], a, b[s][j], exact);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < Rows; ++i) {
#pragma unroll
      for (int j = 0; j < Columns; ++j) {
        if (j >= columns) continue;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int row = (row_tile + i) * 16 + lane / 4 + k / 2 * 8, n = j * 8 + lane % 4 * 2 + k % 2;
          sums[(warp * tiling.sequences() + n) * tiling.sums_stride() + row] = d[i][j][k];
        }
      }
    }
  }
};

// One unit of one row whose recurrent part is in registers.
template <class C, bool Keep>
class SliceForward : public ForwardUnits<float, C, 0, Keep> {
  using Base = ForwardUnits<float, C, 0, Keep>;

 public:
  using V = Vec<float>;
  using Base::Base;

  RNNEXT_INLINE V a(int g) const { return this->part(this->p.x, g) + sums[g] + this->bias(g, g); }
  RNNEXT_INLINE V r(int g) const { return sums[g] + this->bias(g, shape_of<C>.gates() + g - shape_of<C>.summed); }

  V sums[at_least_one(C::shape.recurrent_gates())];
};

// The stage of a step at the places of this thread.
template <class C, bool Keep, class O>
RNNEXT_INLINE void forward_places(const Slice<O>& slice, const StepForward<float>& step, int places, int buffer) {
  using Units = SliceForward<C, Keep>;
  for (auto at = slice.first_place(); at.i < places; at = slice.after(at)) {
    typename Units::RowTotals none;
    Units unit(step, at.n, at.unit, 1, none);
    const int u = static_cast<int>(at.unit) - slice.unit;
    for (int g = 0; g < shape_of<C>.recurrent_gates(); ++g) {
      unit.sums[g] = Vec<float>(slice.sum(g * slice.units + u, at.n));
    }
    C::template forward<0>(unit);
    unit.finish();
    slice.publish(buffer, at.unit, at.n, step.state[0][at.n][at.unit]);
  }
}

template <class C, class O>
__global__ void __launch_bounds__(kPersistentThreads, 1)
    forward_scan(const __grid_constant__ ForwardArguments<float, C> a, const __grid_constant__ cuda::PersistentScan p) {
  constexpr int gates = C::shape.recurrent_gates(), states = C::shape.states.count;
  const StepForward<float> base = a.on_device();
  const Slice<O> slice(p);
  const int64_t H = p.H;
  slice.load_weights(gates * slice.units, static_cast<int>(H), [&](int row, int k) {
    return p.w_hh[(row / slice.units * H + slice.unit + row % slice.units) * H + k];
  });
  StepForward<float> step = base;
  for (int k = 0; k < states; ++k) step.state[k] = slice.state(k);
  for (auto at = slice.first_place(); at.i < slice.places(slice.sequences); at = slice.after(at)) {
    for (int k = 0; k < states; ++k) step.state[k][at.n][at.unit] = base.state[k][slice.first + at.n][at.unit];
    // In both buffers, for sequences that begin later.
    for (int buffer = 0; buffer < 2; ++buffer) slice.publish(buffer, at.unit, at.n, step.state[0][at.n][at.unit]);
  }
  slice.post(1);
  const int count = static_cast<int>(p.run.end - p.run.begin);
  for (int i = 0; i < count; ++i) {
    const int64_t t = p.reverse ? p.run.end - 1 - i : p.run.begin + i;
    const int64_t row = slice.first_row(t) + slice.first;
    const int places = slice.places(slice.alive(t));
    step.x[0] = base.x[0].from(row - p.first_row);
    step.y[0] = base.y[0].from(row);
    step.record.rows = base.record.rows.from(row);
    for (int k = 0; k < shape_of<C>.noises; ++k) step.noise[k] = base.noise[k].from(row - p.first_row);
    for (auto at = slice.first_place(); at.i < places; at = slice.after(at)) {
      for (int g = 0; g < shape_of<C>.gates(); ++g) prefetch(step.x[0][at.n] + g * H + at.unit);
    }
    slice.await(i + 1);
    slice.multiply(i % 2);
    if (base.record.rows) {
      forward_places<C, true>(slice, step, places, (i + 1) % 2);
    } else {
      forward_places<C, false>(slice, step, places, (i + 1) % 2);
    }
    slice.post(i + 2);
  }
  for (auto at = slice.first_place(); at.i < slice.places(slice.sequences); at = slice.after(at)) {
    for (int k = 0; k < states; ++k) base.state[k][slice.first + at.n][at.unit] = step.state[k][at.n][at.unit];
  }
}

// One unit of one row whose gradients of recurrent parts go to the other slices, too.
template <class C, class O>
class SliceBackward : public BackwardUnits<float, C, 0> {
  using Base = BackwardUnits<float, C, 0>;

 public:
  using V = Vec<float>;

  RNNEXT_INLINE SliceBackward(const StepBackward<float>& step, int64_t row, int64_t unit,
                              typename Base::RowTotals& totals, const Slice<O>& slice, int buffer)
      : Base(step, row, unit, 1, totals), slice_(slice), buffer_(buffer) {}

  RNNEXT_INLINE void da(int g, V v) {
    Base::da(g, v);
    publish(g, v);
  }
  RNNEXT_INLINE void dr(int g, V v) {
    Base::dr(g, v);
    publish(g, v);
  }

 private:
  RNNEXT_INLINE void publish(int g, V v) const {
    slice_.publish(buffer_, static_cast<int>(g * slice_.p.H + this->unit), static_cast<int>(this->row), v.v);
  }

  const Slice<O>& slice_;
  const int buffer_;
};

template <class C, class O>
__global__ void __launch_bounds__(kPersistentThreads, 1)
    backward_scan(const __grid_constant__ BackwardArguments<float, C> a, const __grid_constant__ cuda::PersistentScan p,
                  const __grid_constant__ cuda::InitialStates initial) {
  using Units = SliceBackward<C, O>;
  constexpr int gates = C::shape.recurrent_gates(), states = C::shape.states.count, saved = C::shape.saved.count;
  const StepBackward<float> base = a.on_device();
  const Slice<O> slice(p);
  const int64_t H = p.H;
  slice.load_weights(slice.units, static_cast<int>(gates * H),
                     [&](int row, int k) { return p.w_hh[k * H + slice.unit + row]; });
  StepBackward<float> step = base;
  for (int k = 0; k < states; ++k) step.dstate[k] = slice.state(k);
  for (auto at = slice.first_place(); at.i < slice.places(slice.sequences); at = slice.after(at)) {
    for (int k = 0; k < states; ++k) step.dstate[k][at.n][at.unit] = base.dstate[k][slice.first + at.n][at.unit];
  }
  __syncthreads();
  const int count = static_cast<int>(p.run.end - p.run.begin);
  int places_before = 0;
  // After the last step, what it gives to the step before the run is still to be added.
  for (int i = 0; i <= count; ++i) {
    const int64_t t = p.reverse ? p.run.begin + i : p.run.end - 1 - i, previous = p.reverse ? t + 1 : t - 1;
    const int64_t row = i < count ? slice.first_row(t) + slice.first : 0;
    const int alive = i < count ? slice.alive(t) : 0, places = slice.places(alive);
    if (i < count) {
      step.record.rows = base.record.rows.from(row);
      step.next[0] = base.next[0].from(row);
      if (base.dy[0]) step.dy[0] = base.dy[0].from(row);
      step.gradients.rows = base.gradients.rows.from(row - p.first_row);
      for (int k = 0; k < shape_of<C>.noises; ++k) step.noise[k] = base.noise[k].from(row - p.first_row);
      for (auto at = slice.first_place(); at.i < places; at = slice.after(at)) {
        for (int k = 0; k < saved; ++k) prefetch(step.record.at(at.n, k) + at.unit);
      }
    }
    if (i > 0) {
      slice.await(i);
      slice.multiply((i - 1) % 2);
      for (auto at = slice.first_place(); at.i < places_before; at = slice.after(at)) {
        step.dstate[0][at.n][at.unit] += slice.sum(static_cast<int>(at.unit) - slice.unit, at.n);
      }
    }
    if (i == count) break;
    // Sequences that began before t find their last state among the outputs, the others at the initial state.
    const bool first = previous < initial.scanned.begin || previous >= initial.scanned.end;
    const int continued = first ? 0 : Slice<O>::min(alive, slice.alive(previous));
    const int64_t last_row = first ? 0 : slice.first_row(previous) + slice.first;
    for (auto at = slice.first_place(); at.i < places; at = slice.after(at)) {
      for (int k = 0; k < states; ++k) {
        const Rows<const float> later =
            k == 0 ? base.next[0] : base.record.rows.from(0, base.record.offset[at_least_one(saved + k) - 1]);
        step.state[k] = at.n < continued ? later.from(last_row) : initial.rows[k].from(slice.first);
      }
      typename Units::RowTotals none;
      Units unit(step, at.n, at.unit, none, slice, i % 2);
      C::template backward<0>(unit);
      unit.finish();
    }
    slice.post(i + 1);
    places_before = places;
  }
  for (auto at = slice.first_place(); at.i < slice.places(slice.sequences); at = slice.after(at)) {
    for (int k = 0; k < states; ++k) base.dstate[k][slice.first + at.n][at.unit] = step.dstate[k][at.n][at.unit];
  }
}

template <class C>
constexpr bool can_persist() {
  constexpr CellShape s = C::shape;
  bool can = s.streams == 1 && s.forward_stages == 1 && s.backward_stages == 1 && s.products == 0 &&
             s.recurrent_gates() > 0 && s.totals() == 0 && s.back_totals() == 0 && s.values.count == 0 &&
             s.back_values.count == 0 && s.forward[0].width == kHidden && s.backward[0].width == kHidden;
  for (int k = 0; k < s.states.count; ++k) can &= s.states.width[k] == kHidden;
  for (int k = 0; k < s.saved.count; ++k) can &= s.saved.width[k] == kHidden;
  return can;
}

// Calls work(operand) with the operands' type.
template <class Work>
auto with_operand(Precision precision, Work work) {
  switch (precision) {
    case Precision::kBFloat16:
      return work(BFloat16Operand{});
    case Precision::kHalf:
      return work(HalfOperand{});
    default:
      return work(FloatOperand{});
  }
}

template <class C>
int resident_blocks(bool forward, Precision precision, int shared) {
  return with_operand(precision, [&](auto operand) {
    using O = decltype(operand);
    return forward ? cuda::resident_blocks(&forward_scan<C, O>, kPersistentThreads, shared)
                   : cuda::resident_blocks(&backward_scan<C, O>, kPersistentThreads, shared);
  });
}

template <class C>
int shared_bytes(const Tiling& tiling) {
  return static_cast<int>(tiling.shared_bytes(C::shape.states.count));
}

inline dim3 grid_of(const Tiling& tiling) {
  return dim3(static_cast<unsigned>(tiling.slices), static_cast<unsigned>(tiling.groups));
}

template <class C>
void scan_forward(const StepForward<float>& step, const cuda::PersistentScan& scan, cuda::Stream stream) {
  with_operand(scan.precision, [&](auto operand) {
    cuda::launch(&forward_scan<C, decltype(operand)>, grid_of(scan.tiling), kPersistentThreads,
                 shared_bytes<C>(scan.tiling), true, stream, ForwardArguments<float, C>(step), scan);
  });
}

template <class C>
void scan_backward(const StepBackward<float>& step, const cuda::PersistentScan& scan,
                   const cuda::InitialStates& initial, cuda::Stream stream) {
  with_operand(scan.precision, [&](auto operand) {
    cuda::launch(&backward_scan<C, decltype(operand)>, grid_of(scan.tiling), kPersistentThreads,
                 shared_bytes<C>(scan.tiling), true, stream, BackwardArguments<float, C>(step), scan, initial);
  });
}

template <class C>
inline constexpr cuda::Persistent persistent_functions{&resident_blocks<C>, &scan_forward<C>, &scan_backward<C>};

// Of a cell that can; else null.
template <class C>
constexpr const cuda::Persistent* persistent() {
  if constexpr (can_persist<C>()) {
    return &persistent_functions<C>;
  } else {
    return nullptr;
  }
}

// All that a GPU has of a cell.
template <class T, class C>
constexpr cuda::Cell<T> whole_cell() {
  if constexpr (std::is_same_v<T, float>) {
    return cell<T, C>(persistent<C>());
  } else {
    return cell<T, C>(nullptr);
  }
}

}  // namespace rnnext::gpu
