// The table of contents: every op of the library.
//
// x [T, N, C], or packed [rows, C] with batch_sizes [T], the last of which may be 0. Packed rows are as many as the sum
// of batch_sizes; or more, up to T * N, and those after the sum are padding: never read, zero in y. h0: one [L * D, N,
// width] for each state of the cell, or none. weights: W_ih, W_hh (, b_ih, b_hh), the cell's own matrices and
// parameters, of each layer and direction, in torch.nn's order; each of the dtype of x, or where x is float32 bfloat16, in
// which its gradient is too. seed: an integer, of the dropout between layers and of
// the cell's noise; or in its place that noise itself, [L * D, rows of x, width of all noise]; without it there is
// none. sizes: of the cell, besides the hidden size; they may be missing where there are none, as AOTInductor's calls
// of an op lose lists that are empty. operand_dtype: float16 or bfloat16, to which products of float32 may round their
// operands where the device has such products; their sums stay in float32. With it, x of a call of rnn that keeps nothing
// may be float16 or bfloat16, as if converted to float32. checkpoint_every: 0, or of how many steps training keeps the
// states before the first one alone, in place of what every step computed, which backward then computes again; without
// effect on any result.
//
// A cell may add up values over the sequences of a step, for statistics of the batch. Then the last of its weights, of each
// layer and direction, are these sums as given, side by side, [T, all their widths], which are constants; or without
// steps, [0, all their widths], where they are to be computed. Its outputs end with the sums, [L * D, T, all their widths].
//
// NAME.states in place of a cell's NAME: then the sequence of each state but h, of the last layer, comes after the final
// states: [T, N, D * width], or packed [rows, D * width].
//
// A cell of two streams takes and gives values and tangents: x and y are [2, ...], h0, weights and final states are all
// those of the values, then all those of the tangents.
#include <torch/library.h>

TORCH_LIBRARY(rnnext, m) {
  // -> y, then the final states, then sequences of states if they are wanted, then sums over sequences if there are any
  m.def(
      "rnn(str cell, Tensor x, Tensor[] h0, Tensor[] weights, Tensor? batch_sizes, Tensor? seed, "
      "int num_layers, bool bidirectional, float dropout, int[]? sizes, ScalarType? operand_dtype=None, "
      "int checkpoint_every=0) -> Tensor[]");
  // One step of one layer, by way of rnn: x [N, C] or [C] and h0 [N, width] or [width] each -> the final states, of h0's
  // form
  m.def(
      "rnn_step(str cell, Tensor x, Tensor[] h0, Tensor W_ih, Tensor W_hh, Tensor? b_ih=None, Tensor? b_hh=None) "
      "-> Tensor[]");
  // -> what rnn gives, then the rest of what rnn_backward calls `saved`
  m.def(
      "rnn_train(str cell, Tensor x, Tensor[] h0, Tensor[] weights, Tensor? batch_sizes, Tensor? seed, "
      "int num_layers, bool bidirectional, float dropout, int[]? sizes, ScalarType? operand_dtype=None, "
      "int checkpoint_every=0) -> Tensor[]");
  // grads: of y and of all else that rnn gives but sums over sequences, or None. saved: what rnn_train gives after the same.
  // output_mask: which gradients of x, h0 and weights are wanted.
  // samples: 0, or how many samples the batch holds, row r of x being of sample r % samples; each then has gradients of
  // the weights of its own, [samples, ...], and what it gives can't be differentiated again.
  m.def(
      "rnn_backward(Tensor?[] grads, Tensor y, Tensor[] saved, str cell, Tensor x, Tensor[] h0, Tensor[] weights, "
      "Tensor? batch_sizes, Tensor? seed, int num_layers, bool bidirectional, float dropout, int[] sizes, "
      "bool[] output_mask, int samples=0, ScalarType? operand_dtype=None, int checkpoint_every=0) -> Tensor[]");
  // -> the tangents of all that rnn gives, for tangents of the inputs; written in Python (derivatives.py)
  m.def(
      "rnn_jvp(str cell, Tensor x, Tensor[] h0, Tensor[] weights, Tensor dx, Tensor[] dh0, Tensor[] dweights, "
      "Tensor? batch_sizes, Tensor? seed, int num_layers, bool bidirectional, float dropout, int[] sizes, "
      "ScalarType? operand_dtype=None, int checkpoint_every=0) -> Tensor[]");
  // lengths [N], in any order -> batch_sizes [T], 0 after the last step of the longest; order [N], of sequences, longest
  // first, and its inverse; rows [T * N], the packed rows' places in a padded batch, those of its padding last, and the
  // inverse of this. No shape depends on lengths. Written in Python (packing.py)
  m.def(
      "packing(Tensor lengths, SymInt n, SymInt steps, bool batch_first) -> "
      "(Tensor batch_sizes, Tensor order, Tensor inverse, Tensor rows, Tensor back)");
  // reset: bool, of the form of the padded batch: where its sequences are cut; lengths: of them, if not all steps -> as
  // packing, of the pieces; first and last [N], which of them are each sequence's; of [pieces], the sequence each is of.
  // Written in Python (packing.py)
  m.def(
      "cutting(Tensor reset, Tensor? lengths, SymInt n, SymInt steps, bool batch_first) -> "
      "(Tensor batch_sizes, Tensor rows, Tensor back, Tensor first, Tensor last, Tensor of)");
  // sizes: the hidden size, then the cell's others. -> gates, columns that training keeps for each row, streams, columns of
  // sums over sequences, then the width of each state
  m.def("cell_shape(str cell, int[] sizes) -> int[]");
  // Dropout's factors of a recurrent matrix, [rows, columns]: 0 with probability p, else 1 / (1 - p). place: layer * D +
  // direction
  m.def(
      "dropout_mask(Tensor seed, SymInt rows, SymInt columns, int place, float p, *, ScalarType dtype=float) -> "
      "Tensor");
  // How a layer's scan would be done, a line for forward and one for backward. sizes: as for cell_shape; heads: blocks of
  // W_hh; dtype: what is computed in; threads: torch's, unless given; bidirectional, num_layers, checkpoints: of the stack
  // that the layer is in; at_zero: of a call without initial states; caches: bytes of a processor's own and of the largest,
  // unless given those of this machine
  m.def(
      "plan(str cell, int T, int N, int C, int[] sizes, int heads=1, Tensor? batch_sizes=None, *, ScalarType dtype, "
      "ScalarType? operand_dtype=None, int? threads=None, bool bidirectional=False, int num_layers=1, "
      "bool checkpoints=False, bool at_zero=False, int[]? caches=None) -> str");
  // The same on the CUDA device that x is on; operand_dtype as for rnn
  m.def(
      "plan_cuda(str cell, Tensor x, int T, int N, int C, int[] sizes, int heads=1, Tensor? batch_sizes=None, *, "
      "ScalarType? operand_dtype=None) -> str");
  // Loads a library with a compiled cell -> the cell's name
  m.def("load_cell(str path) -> str");
  // Loads a cell that was compiled earlier, by another process perhaps -> whether it is there. Written in Python (ops.py)
  m.def("load_cached_cell(str name) -> bool");
  // The same for CUDA devices, where there are kernels for them: loads a library with a compiled cell -> the cell's name
  m.def("load_cuda_cell(str path) -> str");
  // Loads a cell of the cache for the GPUs here, compiled at the first time -> whether that can be done. Written in Python
  // (ops.py)
  m.def("build_cuda_cell(str name) -> bool");
  // -> the CPU instruction sets compiled in, best first
  m.def("instruction_sets() -> str[]");
  // -> the one in use
  m.def("instruction_set() -> str");
}
