// Gated recurrent unit (Cho et al. 2014, in the form of torch.nn.GRU: the reset gate acts after the product).
//
//   r = sigmoid(a_r)   z = sigmoid(a_z)                  a = W_ih x + b_ih + W_hh h + b_hh
//   n = tanh(x_n + r r_n)                                x_n = W_in x + b_in,  r_n = W_hn h + b_hn: apart
//   h' = (1 - z) n + z h
#pragma once

#include "cells/math.h"
#include "engine/cell.h"

namespace rnnext::RNNEXT_ISA {

struct GRU {
  static constexpr CellShape shape{.name = "GRU", .summed = 2, .apart = 1, .states = 1, .saved = 4};
  enum Slot { R, Z, XN, RN };
  enum Saved { SR, SZ, SN, SRN };

  template <class V>
  RNNEXT_INLINE static void forward(const V* a, const V* state, V* next, V* saved) {
    V r = sigmoid(a[R]);
    V z = sigmoid(a[Z]);
    V n = tanh(a[XN] + r * a[RN]);
    next[0] = n + z * (state[0] - n);
    saved[SR] = r;
    saved[SZ] = z;
    saved[SN] = n;
    saved[SRN] = a[RN];
  }

  template <class V>
  RNNEXT_INLINE static void backward(const V* saved, const V* state, const V*, const V* dnext, V* dstate, V* da) {
    V r = saved[SR], z = saved[SZ], n = saved[SN];
    V dh = dnext[0];
    V da_n = dh * (V(1) - z) * (V(1) - n * n);
    da[R] = da_n * saved[SRN] * r * (V(1) - r);
    da[Z] = dh * (state[0] - n) * z * (V(1) - z);
    da[XN] = da_n;
    da[RN] = da_n * r;
    dstate[0] = dh * z;
  }
};

}  // namespace rnnext::RNNEXT_ISA
