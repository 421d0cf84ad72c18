// Elman's recurrent network (Elman 1990), as torch.nn.RNN with either nonlinearity.
//
//   h' = tanh(a)  or  relu(a)                            a = W_ih x + b_ih + W_hh h + b_hh
#pragma once

#include "cells/math.h"
#include "engine/cell.h"

namespace rnnext::RNNEXT_ISA {

struct RNNTanh {
  static constexpr CellShape shape{.name = "RNN_TANH", .summed = 1, .apart = 0, .states = 1, .saved = 0};

  template <class V>
  RNNEXT_INLINE static void forward(const V* a, const V*, V* next, V*) {
    next[0] = tanh(a[0]);
  }

  template <class V>
  RNNEXT_INLINE static void backward(const V*, const V*, const V* next, const V* dnext, V* dstate, V* da) {
    da[0] = dnext[0] * (V(1) - next[0] * next[0]);
    dstate[0] = V(0);
  }
};

struct RNNRelu {
  static constexpr CellShape shape{.name = "RNN_RELU", .summed = 1, .apart = 0, .states = 1, .saved = 0};

  template <class V>
  RNNEXT_INLINE static void forward(const V* a, const V*, V* next, V*) {
    next[0] = relu(a[0]);
  }

  // As torch's: zero where the output is zero or less, and a NaN output hands the gradient on.
  template <class V>
  RNNEXT_INLINE static void backward(const V*, const V*, const V* next, const V* dnext, V* dstate, V* da) {
    da[0] = select(next[0] <= V(0), V(0), dnext[0]);
    dstate[0] = V(0);
  }
};

}  // namespace rnnext::RNNEXT_ISA
