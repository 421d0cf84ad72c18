"""Steps with sums over the batch: values and derivatives, numbers, stages, and the text of C++."""

import pytest
import torch
from batch_cells import CELLS, lstm_of
from eager import HIDDEN, Case, N, program_of

from rnnext.cell import Param, declare
from rnnext.codegen import emit
from rnnext.codegen.errors import CellError
from rnnext.codegen.ir import BATCH_SUMS, walk
from rnnext.codegen.plan import plan
from rnnext.codegen.record import record
from rnnext.codegen.trace import lower

BOTH = pytest.mark.parametrize("streams", [1, 2])


@BOTH
@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients(name, streams):
    """Rows' shares of params' gradients add up to torch's."""
    Case(CELLS[name], streams).check(1e-10)


@BOTH
def test_given_sums(streams):
    """In evaluation sums are given, and no gradient flows through them."""
    case = Case(CELLS["LSTM"], streams)
    given = torch.rand(9, 2, HIDDEN, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    sums = dict(enumerate(N * given.flatten(0, 1)))
    case.given = {
        (node.op, node.index): sums.get(node.index, zero) if node.op == "batch_sum" else zero
        for node in case.program.batch_sums + case.program.back_batch_sums
    }

    def run(values, matrices):
        parts = [f"{{}}_{part}" for part in ("x", "h")] + ["gain_x_{}", "gain_h_{}", "bias_{}"]
        x, h, *params = ([values[part.format(gate)] for gate in "ifgo"] for part in parts)
        return lstm_of(x, h, values["c"], *params, values["gain_c"], values["shift_c"], given)

    case.run = run
    case.check(1e-10)


def in_order(a, b, h):
    (a - a.mean(0)).exp()
    first, second = h.mean(0), b.mean(0)
    repeated = first.expand_as(a).sum(0)
    late = first.exp() * (b - second).square().sum(0)
    return h * late + second + repeated * (a * a).sum(0) + b.sum(0)


@BOTH
def test_numbers_are_in_the_order_of_the_step(streams):
    """Without gaps for what is not used, the same again, or no sum."""
    program = program_of(declare("Order", in_order, gates=("a", "b")), streams)
    sums = program.batch_sums
    assert [node.index for node in sums] == list(range(len(sums)))
    assert [node.args[0].op for node in sums[:4]] == ["state", "gate", "mul", "mul"]
    assert "late = " in sums[2].source
    assert len(sums) == 4 * streams
    back = [node.index for node in program.back_batch_sums]
    assert back == list(range(len(back)))


@pytest.mark.parametrize("name", CELLS)
def test_nothing_is_added_up_that_is_the_same_in_all_rows(name):
    program = program_of(CELLS[name], 1)
    uniform = program.uniform()
    assert not [n for n in walk(program.results()) if n.op in BATCH_SUMS and n.args[0] in uniform]


def test_sums_are_not_kept_twice():
    """Neither they nor what is made of them; nor do stages hand it over."""
    for name in CELLS:
        found = plan(program_of(CELLS[name], 1))
        uniform = found.program.uniform()
        operands = [use.operands[0] for use in found.program.products]
        assert not [s for s in found.saved if s.node in uniform and s.node not in operands]
        slots = [*found.forward.slots, *found.backward.slots]
        assert not [node for node, _ in slots if node in uniform and node not in operands]


def test_stages():
    found = plan(program_of(CELLS["LSTM"], 1))
    assert len(found.program.batch_sums) == 18
    assert len(found.forward.stages) == 5
    assert len(found.backward.stages) == 3


def test_text_of_a_header():
    text = emit.header(program_of(CELLS["centred"], 1), "x")
    start, end = text.index("  static constexpr"), text.index("};\n\n}  // namespace")
    assert text[start:end] == CENTRED


CENTRED = """\
  static constexpr CellShape shape{.name = "x",
                                   .summed = 1,
                                   .params = {1},
                                   .forward_stages = 2,
                                   .forward = {{.sums_batch = true}, {}},
                                   .backward_stages = 2,
                                   .backward = {{.sums_batch = true}, {}},
                                   .saved = {1},
                                   .back_values = {1},
                                   .batch_sums = {1},
                                   .back_batch_sums = {1}};
  enum Gate { A };
  enum State { H };
  enum Param { P };
  enum Saved { SAVED_0 };

  template <int Stage, class U, class V = typename U::V>
  RNNEXT_INLINE static void forward(U& u) {
    if constexpr (Stage == 0) {
      for (; u.has_row(); u.next_row()) {
        u.add_batch(0, u.a(A));
      }
    } else if constexpr (Stage == 1) {
      // return torch.tanh(p * (a - a.mean(0))) + h
      const V v1 = u.batch_sum(0) / u.batch();
      const V p = u.param(P);
      for (; u.has_row(); u.next_row()) {
        // return torch.tanh(p * (a - a.mean(0))) + h
        const V v2 = u.a(A) - v1;
        u.save(SAVED_0, v2);
        u.next(H, tanh(p * v2) + u.state(H));
      }
    }
  }

  template <int Stage, class U, class V = typename U::V>
  RNNEXT_INLINE static void backward(U& u) {
    if constexpr (Stage == 0) {
      const V p = u.param(P);
      for (; u.has_row(); u.next_row()) {
        const V dh = u.dnext(H), v1 = u.saved(SAVED_0);
        // return torch.tanh(p * (a - a.mean(0))) + h
        const V v2 = tanh(p * v1);
        const V v3 = dh * (V(1) - v2 * v2);
        u.put(0, v3);
        u.add_batch(0, v3);
        u.dparam(P, v3 * v1);
        u.dstate(H, dh);
      }
    } else if constexpr (Stage == 1) {
      const V p = u.param(P);
      const V v4 = u.batch_sum(0) * (-p / u.batch());
      for (; u.has_row(); u.next_row()) {
        u.da(A, u.value(0) * p + v4);
      }
    }
  }
"""


def test_widths_of_sums():
    text = emit.header(program_of(CELLS["widths"], 1), "x")
    assert ".batch_sums = {2, {kHidden, 1}}" in text


def test_one_value_a_row_beside_sums_over_the_batch():
    def state(a, m):
        return torch.tanh(a - a.mean(0)), m.sin()

    def param(a, m):
        return torch.tanh(a - a.mean(0)) * m

    cell = declare("Mixed", state, gates=("a",), states={"h": "hidden_size", "m": 1})
    with pytest.raises(CellError, match="beside them results of one value a row"):
        plan(program_of(cell, 1))
    cell = declare("Mixed", param, gates=("a",), params={"m": Param(1.0, 1)})
    with pytest.raises(CellError, match=r"derivative .* with sums over the batch: .* one value"):
        program_of(cell, 1)


def test_too_many_sums():
    def step(a, h):
        for k in range(97):
            h = h + (a * float(k + 2)).mean(0)
        return h

    with pytest.raises(CellError, match="it has 97 sums over the batch in its forward"):
        emit.header(lower(record(declare("Many", step, gates=("a",)))), "x")
