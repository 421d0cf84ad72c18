// Long short-term memory (Hochreiter and Schmidhuber 1997; gates and their order as in torch.nn.LSTM).
//
//   i = sigmoid(a_i)   f = sigmoid(a_f)   g = tanh(a_g)   o = sigmoid(a_o)     a = W_ih x + b_ih + W_hh h + b_hh
//   c' = f c + i g
//   h' = o tanh(c')
#pragma once

#include "cells/math.h"
#include "engine/cell.h"

namespace rnnext::RNNEXT_ISA {

struct LSTM {
  static constexpr CellShape shape{.name = "LSTM", .summed = 4, .apart = 0, .states = 2, .saved = 4};
  enum Gate { I, F, G, O };
  enum State { H, C };

  template <class V>
  RNNEXT_INLINE static void forward(const V* a, const V* state, V* next, V* saved) {
    V i = sigmoid(a[I]);
    V f = sigmoid(a[F]);
    V g = tanh(a[G]);
    V o = sigmoid(a[O]);
    V c = f * state[C] + i * g;
    next[H] = o * tanh(c);
    next[C] = c;
    saved[I] = i;
    saved[F] = f;
    saved[G] = g;
    saved[O] = o;
  }

  template <class V>
  RNNEXT_INLINE static void backward(const V* saved, const V* state, const V* next, const V* dnext, V* dstate, V* da) {
    V i = saved[I], f = saved[F], g = saved[G], o = saved[O];
    V tanh_c = tanh(next[C]);
    V dh = dnext[H];
    V dc = dnext[C] + dh * o * (V(1) - tanh_c * tanh_c);
    da[I] = dc * g * i * (V(1) - i);
    da[F] = dc * state[C] * f * (V(1) - f);
    da[G] = dc * i * (V(1) - g * g);
    da[O] = dh * tanh_c * o * (V(1) - o);
    dstate[H] = V(0);
    dstate[C] = dc * f;
  }
};

}  // namespace rnnext::RNNEXT_ISA
