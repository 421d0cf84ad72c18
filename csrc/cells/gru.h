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
  static constexpr CellShape shape{.name = "GRU", .summed = 2, .apart = 1, .saved = {4}};
  enum Gate { R, Z, N };
  enum Saved { SR, SZ, SN, SRN };

  template <int, class U>
  RNNEXT_INLINE static void forward(U& u) {
    const auto r = sigmoid(u.a(R)), z = sigmoid(u.a(Z)), r_n = u.r(N);
    const auto n = tanh(u.x(N) + r * r_n);
    u.next(0, n + z * (u.state(0) - n));
    u.save(SR, r);
    u.save(SZ, z);
    u.save(SN, n);
    u.save(SRN, r_n);
  }

  template <int, class U, class V = typename U::V>
  RNNEXT_INLINE static void backward(U& u) {
    const V r = u.saved(SR), z = u.saved(SZ), n = u.saved(SN), dh = u.dnext(0);
    const V da_n = fma(-dh, z, dh) * (V(1) - n * n);  // (1 - z) dh; as in torch.nn, NaN where dh is infinite
    u.da(R, da_n * u.saved(SRN) * r * (V(1) - r));
    u.da(Z, dh * (u.state(0) - n) * z * (V(1) - z));
    u.dx(N, da_n);
    u.dr(N, da_n * r);
    u.dstate(0, dh * z);
  }
};

}  // namespace rnnext::RNNEXT_ISA
