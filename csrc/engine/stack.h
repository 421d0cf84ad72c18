// The whole stack: layers, directions, and dropout between layers, around the scans of a backend.
//
// A backend is a class with static functions: scan_forward(scans, apart) and scan_backward(scans, apart), of vectors of
// ScanForward<T> and ScanBackward<T>, in this order or, if apart, at the same time: the directions of a layer where
// directions_apart(shape, steps, bytes of a value), and layers, linked (engine/handoff.h), where layers_apart(shape, steps,
// bytes, layers); dropout(first, count, src, dst, seed, layer, p), and empty(sizes, like), an uninitialised tensor; and
// kBlockRows: at most so many rows are in a time block, where sequences are few enough. One whose kReadsBFloat16 is true
// takes matrices of bfloat16 beside float32; for the others they are converted here.
#pragma once

#include <ATen/Dispatch.h>

#include <algorithm>

#include "engine/call.h"
#include "engine/handoff.h"

namespace rnnext {

// Of layers that go side by side, each waits for a block of the one before it: there are some blocks, but each has rows
// enough for its products.
constexpr int64_t kLinkedBlocks = 8, kLinkedRows = 24;

inline int64_t linked_block_rows(int64_t block_rows, int64_t total) {
  return std::clamp(total / kLinkedBlocks, kLinkedRows, block_rows);
}

template <class Backend>
class Stack : Call {
 public:
  // Arguments: as those of Call.
  template <class... Arguments>
  explicit Stack(const Arguments&... arguments)
      : Call(Backend::kReadsBFloat16, arguments...), layers_apart_(whether_layers_apart()) {}

  // [y, h_n, ...], then if wanted the sequence of each state but h, of the last layer; then the sums over sequences of a
  // cell that has such; and in training what else backward() needs: a record, or checkpoints, for each layer, then y of
  // each layer but the last.
  std::vector<Tensor> forward(bool training) const {
    std::vector<Tensor> finals, sequences, records, outputs;
    for (int k = 0; k < cell_.all_states(); ++k) finals.push_back(x_.new_empty(state_shape(k)));
    for (int k : sequenced()) sequences.push_back(Backend::empty(sequence_form(k), x_));
    std::vector<Tensor> sums = first_sums();
    AT_DISPATCH_FLOATING_TYPES(x_.scalar_type(), "rnnext::rnn", [&] {
      Chain<ScanForward<scalar_t>> chain(layers_apart_ ? s_.L : 0);
      for (int64_t l = 0; l < s_.L; ++l) {
        const auto [input, fill] = l == 0 ? Dropped{x_} : dropped<scalar_t>(outputs.back(), l - 1, layers_apart_);
        if (!training && !layers_apart_) outputs.clear();
        outputs.push_back(Backend::empty({cell_.streams, s_.rows, s_.D * h_}, x_));
        if (training) records.push_back(Backend::empty(record_shape(), x_));
        std::vector<ScanForward<scalar_t>> scans;
        for (int64_t d = 0; d < s_.D; ++d) {
          scans.push_back(forward_scan<scalar_t>(l, d, input, outputs.back(), training ? records.back() : Tensor(),
                                                 finals, l == s_.L - 1 ? sequences : std::vector<Tensor>()));
          scans.back().batch_sums = sums_of<scalar_t>(sums, l, d);
        }
        layers_apart_ ? chain.add(scans[0], fill) : Backend::scan_forward(scans, directions_apart(input));
      }
      if (layers_apart_) Backend::scan_forward(chain.scans(), true);
    });
    clear_padding(outputs.back());
    for (const Tensor& sequence : sequences) clear_padding(sequence.view({1, s_.rows, -1}));
    std::vector<Tensor> result{as_given(outputs.back())};
    outputs.pop_back();
    if (!training) outputs.clear();
    for (auto* more : {&finals, &sequences, &sums, &records, &outputs})
      result.insert(result.end(), more->begin(), more->end());
    return result;
  }

  // Gradients of x, the initial states and the weights, in that order: those whose entry in `wanted` is true. `grads`: of
  // y, of the final states and of the sequences, undefined where there is none. `kept`: what forward() gave for it.
  // `samples`: 0, or how many samples have gradients of the weights of their own, [samples, ...]; row r of x is of sample
  // r % samples.
  std::vector<Tensor> backward(const std::vector<Tensor>& grads, const Tensor& y, at::TensorList kept,
                               const std::vector<bool>& wanted, int64_t samples) const {
    check_backward(grads, y, kept, wanted);
    check_samples(samples);
    std::vector<Tensor> saved, sums;
    for (const Tensor& tensor : kept) saved.push_back(tensor.contiguous());
    if (cell_.mixes_sequences()) {
      sums.push_back(saved[0]);
      saved.erase(saved.begin());
    }
    const int64_t first_weight = 1 + h0_.size();
    const auto first_state = wanted.begin() + 1, last_state = wanted.begin() + first_weight;
    const bool wants_dstates = std::find(first_state, last_state, true) != last_state;
    std::vector<Tensor> dstates;
    for (int k = 0; k < cell_.all_states(); ++k) {
      const Tensor& given = grads[1 + k];
      dstates.push_back(given.defined() ? given.clone(at::MemoryFormat::Contiguous) : x_.new_zeros(state_shape(k)));
    }
    std::vector<Tensor> dweights(weights_.size());
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (!wanted[first_weight + i]) continue;
      std::vector<int64_t> form = weights_[i].sizes().vec();
      if (samples) form.insert(form.begin(), samples);
      const Tensor& like = writes_bfloat16(samples) ? weights_[i] : x_;
      dweights[i] = s_.rows ? Backend::empty(form, like) : like.new_zeros(form);
    }
    // The lowest layer that something is wanted of; the ones below it are left out.
    const bool all_layers = wanted[0] || wants_dstates;
    int64_t lowest = 0;
    while (!all_layers && lowest < s_.L && !wants_weights(dweights, lowest)) ++lowest;

    std::vector<Tensor> dsequences;
    for (size_t i = 1 + cell_.all_states(); i < grads.size(); ++i) {
      dsequences.push_back(grads[i].defined() ? grads[i].contiguous() : Tensor());
    }
    Dropped dy{grads[0].defined() ? as_rows(grads[0]) : Tensor()};
    Tensor dx;
    std::vector<Tensor> alive;
    AT_DISPATCH_FLOATING_TYPES(x_.scalar_type(), "rnnext::rnn_backward", [&] {
      const bool linked = layers_apart_ && !checkpoint_every_;
      Chain<ScanBackward<scalar_t>> chain(linked ? s_.L - lowest : 0);
      for (int64_t l = s_.L - 1; l >= lowest; --l) {
        const Tensor output = l == s_.L - 1 ? as_rows(y) : saved[s_.L + l];
        const Tensor input = l == 0 ? x_ : dropped<scalar_t>(saved[s_.L + l - 1], l - 1).values;
        const bool wants_dx = l > lowest || (l == 0 && wanted[0]);
        dx = wants_dx ? Backend::empty(input.sizes(), input) : Tensor();
        // Of directions that may go side by side, each has a gradient of x of its own.
        const bool apart = directions_apart(input);
        const Tensor second = apart && wants_dx ? Backend::empty(input.sizes(), input) : dx;
        std::vector<ScanBackward<scalar_t>> scans;
        for (int64_t d = 0; d < s_.D; ++d) {
          scans.push_back(backward_scan<scalar_t>(l, d, input, output, dy.values, d == 0 ? dx : second, dstates,
                                                  l == s_.L - 1 ? dsequences : std::vector<Tensor>(), dweights,
                                                  samples));
          scans.back().wants_dstate = wants_dstates;
          scans.back().accumulate_dx = d > 0 && !apart;
          scans.back().batch_sums = sums_of<scalar_t>(sums, l, d);
          if (checkpoint_every_) {
            ScanForward<scalar_t> again = forward_of<scalar_t>(l, d, input);
            again.batch_sums = sums_of<scalar_t>(sums, l, d);
            again.given_sums = true;
            scan_segments(scans.back(), again, saved[l][d]);
          } else {
            scans.back().record = rows_of<scalar_t>(saved[l], d);
          }
        }
        if (linked) {
          chain.add(scans[0], dy.fill);
          alive.insert(alive.end(), {input, dy.values, dx});
        } else if (!checkpoint_every_) {
          Backend::scan_backward(scans, apart);
        }
        if (apart && wants_dx) dx.narrow(1, 0, s_.used).add_(second.narrow(1, 0, s_.used));
        if (l > lowest) dy = dropped<scalar_t>(dx, l - 1, linked);
      }
      if (linked) Backend::scan_backward(chain.scans(), true);
    });

    std::vector<Tensor> result;
    if (wanted[0]) {
      clear_padding(dx);
      result.push_back(as_given(dx));
    }
    for (size_t k = 0; k < h0_.size(); ++k) {
      if (wanted[1 + k]) result.push_back(dstates[k]);
    }
    for (size_t i = 0; i < dweights.size(); ++i) {
      if (dweights[i].defined()) result.push_back(dweights[i].to(dtypes_[i]));
    }
    return result;
  }

 private:
  Steps steps(int64_t direction, int64_t samples = 0) const { return steps(direction, samples, layers_apart_); }
  Steps steps(int64_t direction, int64_t samples, bool linked) const {
    const int64_t rows = linked ? linked_block_rows(Backend::kBlockRows, s_.used) : Backend::kBlockRows;
    return {s_.T, s_.N, s_.packed ? offsets_.data() : nullptr, direction == 1, block_steps(rows, s_.T, s_.N, samples)};
  }

  bool directions_apart(const Tensor& input) const {
    return s_.D == 2 && Backend::directions_apart(shape(input.size(2)), steps(0), x_.element_size());
  }
  // Where there are checkpoints, too, so that blocks, and with them the bits of sums over their rows, are the same.
  bool whether_layers_apart() const {
    return s_.L > 1 && s_.D == 1 && Backend::layers_apart(shape(h_), steps(0, 0, true), x_.element_size(), s_.L);
  }

  // Values after dropout, and what fills some rows of them: nothing, where there is no dropout.
  struct Dropped {
    Tensor values;
    std::function<void(Range rows)> fill;
  };

  // Dropout after layer l: of its outputs, and of the gradients that come back to them; to be filled now or `later`. The
  // mask is made anew each time, the same for values and their tangents.
  template <class T>
  Dropped dropped(const Tensor& values, int64_t l, bool later = false) const {
    if (dropout_ == 0) return {values};
    const Tensor result = Backend::empty(values.sizes(), values);
    const auto fill = [this, values, result, l](Range rows) {
      const int64_t columns = values.size(2);
      for (int stream = 0; stream < cell_.streams; ++stream) {
        Backend::dropout(rows.begin * columns, rows.size() * columns, rows_of<T>(values, stream)[rows.begin],
                         rows_of<T>(result, stream)[rows.begin], noise_.seed, l, dropout_);
      }
    };
    if (!later) fill({0, s_.used});
    return {result, fill};
  }

  // Whether the gradients of matrices kept in bfloat16 are: where nothing is added to what was written.
  bool writes_bfloat16(int64_t samples) const {
    bool once = cell_.streams == 1 && !checkpoint_every_ && steps(0, samples).blocks() <= 1;
    for (int k = 0; k < cell_.products; ++k) {
      for (int other = 0; other < k; ++other) once &= cell_.product[k].matrix != cell_.product[other].matrix;
    }
    return once;
  }

  template <class T>
  ScanForward<T> forward_of(int64_t l, int64_t d, const Tensor& x) const {
    ScanForward<T> p{shape(x.size(2)), steps(d), noise(l, d), operands_};
    p.at_zero = h0_.empty();
    p.given_sums = s_.given_sums;
    p.given_noise = given_noise<T>(l, d);
    for (int stream = 0; stream < cell_.streams; ++stream) {
      p.x[stream] = rows_of<T>(x, stream);
      p.w[stream] = weights_of<const T>(weights_, first_weight(stream, l, d));
      p.bfloat16_w[stream] = weights_of<const BFloat16>(weights_, first_weight(stream, l, d));
    }
    return p;
  }

  template <class T>
  ScanForward<T> forward_scan(int64_t l, int64_t d, const Tensor& x, const Tensor& y, const Tensor& record,
                              const std::vector<Tensor>& finals, const std::vector<Tensor>& sequences) const {
    ScanForward<T> p = forward_of<T>(l, d, x);
    set_sequences(p.sequence, sequences, d);
    for (int stream = 0; stream < cell_.streams; ++stream) p.y[stream] = rows_of<T>(y, stream, d * h_);
    for (int k = 0; k < cell_.all_states(); ++k) {
      p.h0[k] = state_of<T>(h0_, k, l, d);
      p.state[k] = state_of<T>(finals, k, l, d);
    }
    if (record.defined() && checkpoint_every_) {
      p.steps.checkpoint_every = checkpoint_every_;
      p.checkpoints = {record[d].data_ptr<T>(), record.size(3)};
    } else if (record.defined()) {
      p.record = rows_of<T>(record, d);
    }
    return p;
  }

  template <class T>
  ScanBackward<T> backward_scan(int64_t l, int64_t d, const Tensor& x, const Tensor& y, const Tensor& dy,
                                const Tensor& dx, const std::vector<Tensor>& dstates,
                                const std::vector<Tensor>& dsequences, const std::vector<Tensor>& dweights,
                                int64_t samples) const {
    ScanBackward<T> p{shape(x.size(2)), steps(d, samples), noise(l, d), operands_};
    p.given_sums = s_.given_sums;
    p.given_noise = given_noise<T>(l, d);
    for (int stream = 0; stream < cell_.streams; ++stream) {
      p.x[stream] = rows_of<T>(x, stream);
      p.w[stream] = weights_of<const T>(weights_, first_weight(stream, l, d));
      p.dw[stream] = weights_of<T>(dweights, first_weight(stream, l, d));
      p.bfloat16_w[stream] = weights_of<const BFloat16>(weights_, first_weight(stream, l, d));
      p.bfloat16_dw[stream] = weights_of<BFloat16>(dweights, first_weight(stream, l, d));
      p.y[stream] = rows_of<T>(y, stream, d * h_);
      if (dy.defined()) p.dy[stream] = rows_of<T>(dy, stream, d * h_);
      if (dx.defined()) p.dx[stream] = rows_of<T>(dx, stream);
    }
    for (int k = 0; k < cell_.all_states(); ++k) {
      p.h0[k] = state_of<T>(h0_, k, l, d);
      p.dstate[k] = state_of<T>(dstates, k, l, d);
    }
    set_sequences(p.dsequence, dsequences, d);
    p.samples = std::max<int64_t>(samples, 1);
    // As of scans that go side by side, each on one thread; which they do not where there are checkpoints.
    p.one_sum = samples > 1 || layers_apart_ || directions_apart(x);
    return p;
  }

  // Backward through one segment after the other, from the last one scanned to the first. What the forward scan of a
  // segment would have kept is made by running it again. `checkpoints`: [segments, N, all states].
  template <class T>
  void scan_segments(ScanBackward<T> p, ScanForward<T> again, const Tensor& checkpoints) const {
    p.steps.checkpoint_every = checkpoint_every_;
    const int64_t segments = p.steps.segments();
    int64_t rows = 0;
    for (int64_t i = 0; i < segments; ++i) rows = std::max(rows, scanned_rows(p.steps.again(i)).size());
    const Tensor record = x_.new_empty({1, rows, p.shape.record.columns}), y = x_.new_empty({cell_.streams, rows, h_});
    std::vector<Tensor> initial, carry;
    for (int k = 0; k < cell_.all_states(); ++k) {
      for (auto* states : {&initial, &carry}) states->push_back(x_.new_empty({s_.N, p.shape.state_width(k)}));
      p.h0[k] = again.h0[k] = initial[k].data_ptr<T>();
      again.state[k] = carry[k].data_ptr<T>();
    }
    std::vector<int64_t> scanned;
    for (int64_t i = 0; i < segments; ++i) {
      const int64_t segment = p.steps.reverse ? i : segments - 1 - i;
      if (p.steps.again(segment).whole_blocks().size()) scanned.push_back(segment);
    }
    std::shared_ptr<void> kept;
    p.kept = &kept;
    for (int64_t segment : scanned) {
      const Steps steps = p.steps.again(segment);
      int64_t column = 0;
      for (const Tensor& state : initial) {
        state.copy_(checkpoints[segment].narrow(1, column, state.size(1)));
        column += state.size(1);
      }
      // Rows are counted from the first of the whole sequence.
      const int64_t first = scanned_rows(steps).begin;
      again.steps.scanned = steps.scanned;
      again.record = rows_of<T>(record, 0).from(-first);
      for (int stream = 0; stream < cell_.streams; ++stream) again.y[stream] = rows_of<T>(y, stream).from(-first);
      Backend::scan_forward(std::vector{again}, false);
      ScanBackward<T> part = p;
      part.steps = steps;
      part.record = again.record;
      part.goes_on = segment != scanned.back();
      Backend::scan_backward(std::vector{part}, false);
      p.accumulate_dw = true;
    }
  }

  static Range scanned_rows(const Steps& steps) {
    return {steps.first(steps.scanned.begin), steps.first(steps.scanned.end)};
  }

  const bool layers_apart_;
};

}  // namespace rnnext
