// Elman's recurrent network (Elman 1990), as torch.nn.RNN with either nonlinearity.
//
//   h' = tanh(a)  or  relu(a)                            a = W_ih x + b_ih + W_hh h + b_hh
#pragma once

#include "cells/math.h"
#include "engine/cell.h"

namespace rnnext::RNNEXT_ISA {

struct RNNTanh {
  static constexpr CellShape shape{.name = "RNN_TANH", .summed = 1};

  template <int, class U>
  RNNEXT_INLINE static void forward(U& u) {
    u.next(0, tanh(u.a(0)));
  }

  template <int, class U, class V = typename U::V>
  RNNEXT_INLINE static void backward(U& u) {
    const V h = u.next(0);
    u.da(0, u.dnext(0) * (V(1) - h * h));
    u.dstate(0, V(0));
  }
};

struct RNNRelu {
  static constexpr CellShape shape{.name = "RNN_RELU", .summed = 1};

  template <int, class U>
  RNNEXT_INLINE static void forward(U& u) {
    u.next(0, relu(u.a(0)));
  }

  // As torch's: zero where the output is zero or less, and a NaN output hands the gradient on.
  template <int, class U, class V = typename U::V>
  RNNEXT_INLINE static void backward(U& u) {
    u.da(0, select(u.next(0) <= V(0), V(0), u.dnext(0)));
    u.dstate(0, V(0));
  }
};

}  // namespace rnnext::RNNEXT_ISA
