// The table of contents: every op of the library.
//
// x [T, N, C], or packed [rows, C] with batch_sizes [T]. h0: one [L * D, N, H] for each state of the cell, or none.
// weights: W_ih, W_hh (, b_ih, b_hh) of each layer and direction, in torch.nn's order. seed: of the dropout between
// layers; without it there is none.
#include <torch/library.h>

TORCH_LIBRARY(rnnext, m) {
  // -> y, then the final states
  m.def(
      "rnn(str cell, Tensor x, Tensor[] h0, Tensor[] weights, Tensor? batch_sizes, Tensor? seed, "
      "int num_layers, bool bidirectional, float dropout) -> Tensor[]");
  // -> y, the final states, then what rnn_backward calls `saved`
  m.def(
      "rnn_train(str cell, Tensor x, Tensor[] h0, Tensor[] weights, Tensor? batch_sizes, Tensor? seed, "
      "int num_layers, bool bidirectional, float dropout) -> Tensor[]");
  // grads: of y and of the final states, or None. output_mask: which gradients of x, h0 and weights are wanted.
  m.def(
      "rnn_backward(Tensor?[] grads, Tensor y, Tensor[] saved, str cell, Tensor x, Tensor[] h0, Tensor[] weights, "
      "Tensor? batch_sizes, Tensor? seed, int num_layers, bool bidirectional, float dropout, "
      "bool[] output_mask) -> Tensor[]");
  // -> gates, states, and the columns that training keeps for each row, in units of H
  m.def("cell_shape(str cell) -> int[]");
  // -> the CPU instruction sets compiled in, best first
  m.def("instruction_sets() -> str[]");
  // -> the one in use
  m.def("instruction_set() -> str");
}
