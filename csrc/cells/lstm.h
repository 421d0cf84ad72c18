// Long short-term memory (Hochreiter and Schmidhuber 1997; gates and their order as in torch.nn.LSTM).
//
//   i = sigmoid(a_i)   f = sigmoid(a_f)   g = tanh(a_g)   o = sigmoid(a_o)     a = W_ih x + b_ih + W_hh h + b_hh
//   c' = f c + i g
//   h' = o tanh(c')
//
// With projection (Sak et al. 2014), h' = W_hr (o tanh(c')): h is narrower than c.
#pragma once

#include "cells/math.h"
#include "engine/cell.h"

namespace rnnext::RNNEXT_ISA {

struct LSTM {
  static constexpr CellShape shape{.name = "LSTM", .summed = 4, .states = {2}, .saved = {4}};
  enum Gate { I, F, G, O };
  enum State { H, C };

  template <int, class U>
  RNNEXT_INLINE static void forward(U& u) {
    u.next(H, hidden(u));
  }

  template <int, class U, class V = typename U::V>
  RNNEXT_INLINE static void backward(U& u) {
    backward(u, u.dnext(H));
    u.dstate(H, V(0));
  }

  // o tanh(c'); everything but the new h is written.
  template <class U>
  RNNEXT_INLINE static auto hidden(U& u) {
    const auto i = sigmoid(u.a(I)), f = sigmoid(u.a(F)), g = tanh(u.a(G)), o = sigmoid(u.a(O));
    const auto c = f * u.state(C) + i * g;
    u.next(C, c);
    u.save(I, i);
    u.save(F, f);
    u.save(G, g);
    u.save(O, o);
    return o * tanh(c);
  }

  // dh: the gradient of o tanh(c').
  template <class U, class V>
  RNNEXT_INLINE static void backward(U& u, V dh) {
    const V i = u.saved(I), f = u.saved(F), g = u.saved(G), o = u.saved(O);
    const V tanh_c = tanh(u.next(C));
    const V dc = u.dnext(C) + dh * o * (V(1) - tanh_c * tanh_c);
    u.da(I, dc * g * i * (V(1) - i));
    u.da(F, dc * u.state(C) * f * (V(1) - f));
    u.da(G, dc * i * (V(1) - g * g));
    u.da(O, dh * tanh_c * o * (V(1) - o));
    u.dstate(C, dc * f);
  }
};

struct ProjectedLSTM {
  static constexpr int8_t kProjection = 1;
  static constexpr CellShape shape{
      .name = "LSTM_PROJ",
      .sizes = 1,
      .summed = 4,
      .states = {2, {kProjection, kHidden}},
      .matrices = 1,
      .products = 1,
      .product = {{.to = kProjection, .value = {0}, .saved = {4}, .before = 1, .returns = 1}},
      .forward_stages = 2,
      .forward = {{}, {.width = kProjection}},
      .backward_stages = 2,
      .backward = {{.width = kProjection}, {}},
      .saved = {5},
      .values = {1}};
  enum State { H, C };
  enum Value { kOperand, kSavedOperand = 4 };

  template <int Stage, class U>
  RNNEXT_INLINE static void forward(U& u) {
    if constexpr (Stage == 0) {
      const auto hidden = LSTM::hidden(u);
      u.put(kOperand, hidden);
      u.save(kSavedOperand, hidden);
    } else {
      u.next(H, u.product(0));
    }
  }

  template <int Stage, class U, class V = typename U::V>
  RNNEXT_INLINE static void backward(U& u) {
    if constexpr (Stage == 0) {
      u.dproduct(0, u.dnext(H));
      u.dstate(H, V(0));
    } else {
      LSTM::backward(u, u.doperand(0));
    }
  }
};

}  // namespace rnnext::RNNEXT_ISA
