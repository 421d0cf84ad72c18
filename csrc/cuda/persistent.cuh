// A scan in one launch. The recurrent weights stay in shared memory, the states of a slice of units too; what other slices
// need of a step is exchanged (exchange.cuh). For cells of one stage whose only product is the recurrent one.
//
// Blocks that wait for each other run at the same time: all of the grid (a cooperative launch) or those of a cluster. So
// every wait ends.
#pragma once

#include "cuda/scalar.h"

#include "cuda/slice.cuh"
#include "cuda/step.cuh"

namespace rnnext::gpu {

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
template <class C, bool Keep, class Slice>
RNNEXT_INLINE void forward_places(const Slice& slice, const StepForward<float>& step, int places, int buffer) {
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
    slice.publish(buffer, 0, at.unit, at.n, step.state[0][at.n][at.unit]);
  }
}

template <class C, class O, class X>
RNNEXT_INLINE void scan_forward_slice(const ForwardArguments<float, C>& a, const cuda::PersistentScan& p) {
  constexpr int gates = C::shape.recurrent_gates(), states = C::shape.states.count;
  const StepForward<float> base = a.on_device();
  const Slice<O, X> slice(p);
  const int64_t H = p.H;
  slice.load_weights(gates * slice.units, [&](int row, int, int64_t from) {
    return p.w_hh[(row / slice.units * H + slice.unit + row % slice.units) * H + from];
  });
  StepForward<float> step = base;
  for (int k = 0; k < states; ++k) step.state[k] = slice.state(k);
  for (auto at = slice.first_place(); at.i < slice.places(slice.sequences); at = slice.after(at)) {
    for (int k = 0; k < states; ++k) step.state[k][at.n][at.unit] = base.state[k][slice.first + at.n][at.unit];
    // In both buffers, for sequences that begin later.
    for (int buffer = 0; buffer < 2; ++buffer) slice.publish(buffer, 0, at.unit, at.n, step.state[0][at.n][at.unit]);
  }
  slice.exchange.post(1);
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
    slice.exchange.await(i + 1);
    slice.multiply(i % 2);
    if (base.record.rows) {
      forward_places<C, true>(slice, step, places, (i + 1) % 2);
    } else {
      forward_places<C, false>(slice, step, places, (i + 1) % 2);
    }
    if (i + 1 < count) slice.exchange.post(i + 2);
  }
  for (auto at = slice.first_place(); at.i < slice.places(slice.sequences); at = slice.after(at)) {
    for (int k = 0; k < states; ++k) base.state[k][slice.first + at.n][at.unit] = step.state[k][at.n][at.unit];
  }
}

// One unit of one row whose gradients of recurrent parts go to the other slices, too.
template <class C, class Slice>
class SliceBackward : public BackwardUnits<float, C, 0> {
  using Base = BackwardUnits<float, C, 0>;

 public:
  using V = Vec<float>;

  RNNEXT_INLINE SliceBackward(const StepBackward<float>& step, int64_t row, int64_t unit,
                              typename Base::RowTotals& totals, const Slice& slice, int buffer)
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
    slice_.publish(buffer_, g, this->unit, static_cast<int>(this->row), v.v);
  }

  const Slice& slice_;
  const int buffer_;
};

template <class C, class O, class X>
RNNEXT_INLINE void scan_backward_slice(const BackwardArguments<float, C>& a, const cuda::PersistentScan& p,
                                       const cuda::InitialStates& initial) {
  using Units = SliceBackward<C, Slice<O, X>>;
  constexpr int states = C::shape.states.count, saved = C::shape.saved.count;
  const StepBackward<float> base = a.on_device();
  const Slice<O, X> slice(p);
  const int64_t H = p.H;
  slice.load_weights(slice.units,
                     [&](int row, int gate, int64_t from) { return p.w_hh[(gate * H + from) * H + slice.unit + row]; });
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
      slice.exchange.await(i);
      slice.multiply((i - 1) % 2);
      for (auto at = slice.first_place(); at.i < places_before; at = slice.after(at)) {
        step.dstate[0][at.n][at.unit] += slice.sum(static_cast<int>(at.unit) - slice.unit, at.n);
      }
    }
    if (i == count) break;
    // Sequences that began before t find their last state among the outputs, the others at the initial state.
    const bool first = previous < initial.scanned.begin || previous >= initial.scanned.end;
    const int continued = first ? 0 : slice.min(alive, slice.alive(previous));
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
    slice.exchange.post(i + 1);
    places_before = places;
  }
  for (auto at = slice.first_place(); at.i < slice.places(slice.sequences); at = slice.after(at)) {
    for (int k = 0; k < states; ++k) base.dstate[k][slice.first + at.n][at.unit] = step.dstate[k][at.n][at.unit];
  }
}

template <class C, class O, class X>
__global__ void __launch_bounds__(kPersistentThreads, 1)
    forward_scan(const __grid_constant__ ForwardArguments<float, C> a, const __grid_constant__ cuda::PersistentScan p) {
  if constexpr (X::has_kernels) scan_forward_slice<C, O, X>(a, p);
}

template <class C, class O, class X>
__global__ void __launch_bounds__(kPersistentThreads, 1)
    backward_scan(const __grid_constant__ BackwardArguments<float, C> a, const __grid_constant__ cuda::PersistentScan p,
                  const __grid_constant__ cuda::InitialStates initial) {
  if constexpr (X::has_kernels) scan_backward_slice<C, O, X>(a, p, initial);
}

template <class C>
constexpr bool can_persist() {
  constexpr CellShape s = C::shape;
  bool can = s.streams == 1 && s.forward_stages == 1 && s.backward_stages == 1 && s.products == 0 &&
             s.recurrent_gates() > 0 && s.totals() == 0 && s.back_totals() == 0 && s.values.count == 0 &&
             s.back_values.count == 0 && !s.mixes_sequences() && s.forward[0].width == kHidden &&
             s.backward[0].width == kHidden;
  for (int k = 0; k < s.states.count; ++k) can &= s.states.width[k] == kHidden;
  for (int k = 0; k < s.saved.count; ++k) can &= s.saved.width[k] == kHidden;
  return can;
}

// Calls work(operand, exchange) with the types of a kernel.
template <class Work>
auto with_kernel(Precision precision, Exchange exchange, Work work) {
  const auto with = [&](auto operand) {
    return exchange == Exchange::kCluster ? work(operand, std::type_identity<ClusterExchange>{})
                                          : work(operand, std::type_identity<GridExchange>{});
  };
  switch (precision) {
    case Precision::kBFloat16:
      return with(std::type_identity<BFloat16Operand>{});
    case Precision::kHalf:
      return with(std::type_identity<HalfOperand>{});
    default:
      return with(std::type_identity<FloatOperand>{});
  }
}

template <class C>
cuda::Grid grid_of(const Tiling& tiling) {
  return {dim3(static_cast<unsigned>(tiling.slices), static_cast<unsigned>(tiling.groups)), kPersistentThreads,
          static_cast<int>(tiling.shared_bytes(C::shape.states.count)),
          tiling.exchange == Exchange::kCluster ? cuda::Together::kRows : cuda::Together::kAll};
}

template <class C>
bool can_run(bool forward, Precision precision, const Tiling& tiling) {
  return with_kernel(precision, tiling.exchange, [&]<class O, class X>(std::type_identity<O>, std::type_identity<X>) {
    return forward ? cuda::can_run(&forward_scan<C, O, X>, grid_of<C>(tiling))
                   : cuda::can_run(&backward_scan<C, O, X>, grid_of<C>(tiling));
  });
}

template <class C>
void scan_forward(const StepForward<float>& step, const cuda::PersistentScan& scan, cuda::Stream stream) {
  with_kernel(
      scan.precision, scan.tiling.exchange, [&]<class O, class X>(std::type_identity<O>, std::type_identity<X>) {
        cuda::launch(&forward_scan<C, O, X>, grid_of<C>(scan.tiling), stream, ForwardArguments<float, C>(step), scan);
      });
}

template <class C>
void scan_backward(const StepBackward<float>& step, const cuda::PersistentScan& scan,
                   const cuda::InitialStates& initial, cuda::Stream stream) {
  with_kernel(scan.precision, scan.tiling.exchange,
              [&]<class O, class X>(std::type_identity<O>, std::type_identity<X>) {
                cuda::launch(&backward_scan<C, O, X>, grid_of<C>(scan.tiling), stream,
                             BackwardArguments<float, C>(step), scan, initial);
              });
}

template <class C>
inline constexpr cuda::Persistent persistent_functions{&can_run<C>, &scan_forward<C>, &scan_backward<C>};

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
