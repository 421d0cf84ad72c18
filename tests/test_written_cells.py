"""Written cells on the kernels: every output and gradient, by name, as the built-in ones."""

from typing import Any

import pytest
import torch
from cases import CELLS, PACKED, Case, Data, error, spread
from hypothesis import given, settings
from hypothesis import strategies as st
from test_derivatives import second
from test_kernels import run_in_threads, run_python
from torch.nn.functional import linear
from written_cells import HIDDEN, ZOO

import rnnext
from rnnext import ops, reference
from rnnext.cell import Declaration, declare
from rnnext.codegen import build

zoo = pytest.mark.parametrize("cell", ZOO)

# Few sequences and many units: threads share the units, and meet in every step.
BY_UNITS = Case(T=4, N=2, C=5, H=330)
FEW_PACKED = Case(T=5, N=3, C=3, H=130, D=2, lengths=(5, 4, 1), h0=False)
EVERY = (
    Case(T=5, N=3, C=4, H=7, L=2, D=2, dropout=0.3),
    Case(T=4, N=2, C=0, H=17, bias=False),
    Case(T=7, N=4, C=3, H=65, D=2, lengths=(7, 5, 5, 1)),
    Case(T=9, N=70, C=2, H=9, h0=False),  # two time blocks
    BY_UNITS,
)
LONG = (  # two time blocks of fewer rows
    Case(T=200, N=3, C=5, H=33),
    Case(T=200, N=3, C=5, H=20, D=2, lengths=(200, 150, 2), bias=False),
)
MORE = (
    Case(T=1, N=1, C=1, H=1),
    Case(T=3, N=0, C=2, H=5, L=2),
    Case(T=1, N=2, C=3, H=130, L=2),
    Case(T=1, N=18, C=4, H=20, D=2, h0=False),
    Case(T=4, N=2, C=9, H=330, L=2, D=2, lengths=(4, 2)),
    Case(T=8, N=4, C=8, H=20, L=2, dropout=0.25, lengths=(8, 8, 3, 1)),
)
THOROUGH = ("LSTM", "MinimalGated", "RMSNormGRU", "SLSTM", "Everything", "Spread")
RECURRENT = [name for name, cell in ZOO.items() if cell.gates or cell.apart_gates]
OF_NOISE = [name for name, cell in ZOO.items() if cell.noise]
IN_BLOCKS = ("GRU", "SLSTM", "Zoneout", "Peephole", "FullPeephole")


def data_of(cell: str, case: Case, seed: int = 0) -> Data:
    """The cell, compiled, and its data."""
    name = build.kernel(ZOO[cell]._default)
    assert name is not None
    return Data(name, case, seed)


def check(data: Data, dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32)) -> None:
    """Float32 within 1e-5, or twice the error of the reference in float32."""
    expected = data.reference()
    for dtype in dtypes:
        bounds = dict.fromkeys(data.names, 1e-12 if dtype == torch.float64 else 1e-5)
        result = data.run(ops.rnn, dtype)
        errors = {name: error(result[name], expected[name]) for name in data.names}
        if dtype == torch.float32 and max(errors.values()) > 1e-5:
            theirs = data.run(reference.rnn, dtype)
            bounds = {n: max(1e-5, 2 * error(theirs[n], expected[n])) for n in data.names}
        for name in data.names:
            assert errors[name] <= bounds[name], (dtype, name)


@zoo
@pytest.mark.parametrize("case", EVERY, ids=str)
def test_equals_the_reference(cell: str, case: Case, poisoned_memory: None) -> None:
    check(data_of(cell, case))


@pytest.mark.parametrize("cell", THOROUGH)
@pytest.mark.parametrize("case", MORE, ids=str)
def test_equals_the_reference_in_odd_shapes(cell: str, case: Case, poisoned_memory: None) -> None:
    if cell == "RMSNormGRU" and case.H == 1:
        pytest.skip("the norm of one unit is a constant: its gradient is rounding")
    check(data_of(cell, case))


@pytest.mark.parametrize(("cell", "case"), [*zip(("LSTM", "Zoneout"), LONG, strict=True)], ids=str)
def test_equals_the_reference_over_many_steps(cell: str, case: Case, poisoned_memory: None) -> None:
    check(data_of(cell, case))


@pytest.mark.parametrize("cell", OF_NOISE)
@pytest.mark.parametrize("case", EVERY[:3], ids=str)
def test_without_a_seed_noise_is_its_expectation(cell: str, case: Case) -> None:
    data = data_of(cell, case)
    drawn = data.run(ops.rnn, torch.float64)
    data.seed = None
    check(data)
    assert error(data.run(ops.rnn, torch.float64)["y"], drawn["y"]) > 1e-3


@pytest.mark.parametrize("cell", ["MinimalGated", "Everything"])
def test_weights_larger_than_the_caches(cell: str, poisoned_memory: None) -> None:
    check(data_of(cell, Case(T=3, N=11, C=8, H=900, sizes=(70, 5) if cell == "Everything" else ())))


@pytest.mark.parametrize("cell", RECURRENT)
def test_any_number_of_threads_is_right(cell: str, threads: None, poisoned_memory: None) -> None:
    for case in (BY_UNITS, FEW_PACKED):
        data = data_of(cell, case)
        expected = data.reference()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            result = data.run(ops.rnn, torch.float64)
            for name in data.names:
                assert error(result[name], expected[name]) < 1e-12, (case, count, name)


@pytest.mark.parametrize("cell", IN_BLOCKS)
@pytest.mark.parametrize(
    "case",
    [
        Case(T=4, N=3, C=3, H=12, L=2, D=2, heads=3),
        Case(T=3, N=5, C=3, H=64, heads=64, bias=False),
        Case(T=5, N=2, C=4, H=400, heads=5, lengths=(5, 2)),
    ],
    ids=str,
)
def test_heads(cell: str, case: Case, poisoned_memory: None) -> None:
    check(data_of(cell, case))


@zoo
def test_a_repeat_has_the_same_bits_and_inference_those_of_training(cell: str) -> None:
    for case in (EVERY[0], BY_UNITS):
        data = data_of(cell, case)
        first = data.run(ops.rnn, torch.float32)
        for _ in range(2):
            again = data.run(ops.rnn, torch.float32)
            assert all(torch.equal(first[name], again[name]) for name in data.names)
        inputs = [t.detach() for t in data.inputs(torch.float32)]
        inference = ops.rnn(data.cell, *data.split(inputs), **data.options)
        for name, value in zip(data.names, inference, strict=False):
            assert torch.equal(first[name], value)


@pytest.mark.parametrize("cell", [*OF_NOISE, "SLSTM", "SRU"])
def test_results_do_not_depend_on_the_number_of_threads(cell: str, threads: None) -> None:
    data = data_of(cell, Case(T=30, N=12, C=8, H=48))
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(data.run(ops.rnn, torch.float64))
    for other in results[1:]:
        for name in data.names:
            assert error(other[name], results[0][name]) < 1e-12, name


@pytest.mark.parametrize("cell", ["SLSTM", "Everything", "MinimalGated", "SRU"])
def test_strided_inputs(cell: str) -> None:
    data = data_of(cell, Case(T=4, N=5, C=8, H=12, L=2, D=2))
    expected = data.reference()

    def run(cell: str, *tensors: Any, **options: Any) -> list[torch.Tensor]:
        x, h0, weights = tensors
        return ops.rnn(cell, *data.split([spread(t) for t in (x, *h0, *weights)]), **options)

    result = data.run(run, torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-12, name


@zoo
def test_nan_in_one_sequence_leaves_the_others_alone(cell: str) -> None:
    data = data_of(cell, Case(T=5, N=7, C=6, H=33, L=2))
    clean = data.run(ops.rnn, torch.float32)
    data.x[2, 5, 2] = float("nan")
    dirty = data.run(ops.rnn, torch.float32)
    others = [n for n in range(7) if n != 5]
    assert torch.equal(clean["y"][:, others], dirty["y"][:, others])
    assert torch.equal(clean["dx"][:, others], dirty["dx"][:, others])
    assert torch.isnan(dirty["y"][2:, 5]).any()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "case", [Case(T=9, N=5, C=4, H=33, L=2, D=2, dropout=0.2), PACKED, BY_UNITS], ids=str
)
def test_a_compiled_declaration_of_a_built_in_cell_is_that_cell(cell: str, case: Case) -> None:
    name = build.kernel(reference.CELLS[cell])
    assert name is not None
    written, built_in = Data(name, case), Data(cell, case)
    for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        result, expected = written.run(ops.rnn, dtype), built_in.run(ops.rnn, dtype)
        for key in built_in.names:
            assert error(result[key], expected[key]) < bound, (dtype, key)


ODD = [
    declare("Number", lambda a, p: torch.tanh(a) / p, gates=("a",), sizes=("p",)),
    declare(
        "NoTangent",
        lambda a, h, e, k: torch.tanh(a + linear(e, k) + linear(torch.ones_like(h), k)),
        gates=("a",),
        matrices={"k": (HIDDEN, HIDDEN)},
        noise={"e": rnnext.Bernoulli(0.5)},
    ),
    declare(
        "Detached",
        lambda a, h, k: torch.tanh(a + linear(torch.sin(a).detach(), k)) + 0.5 * h.detach(),
        gates=("a",),
        matrices={"k": (HIDDEN, HIDDEN)},
    ),
    declare(
        "Dead",
        lambda a, k: (linear(torch.sin(a), k), torch.tanh(linear(a, k)))[1],
        gates=("a",),
        matrices={"k": (HIDDEN, HIDDEN)},
    ),
    declare("Constant", lambda a, h: torch.ones_like(h) + 0 * a, gates=("a",)),
]


@pytest.mark.parametrize("cell", ODD, ids=lambda cell: cell.name)
def test_cells_of_which_a_part_leads_nowhere(cell: Declaration) -> None:
    name = build.kernel(cell)
    assert name is not None
    data = Data(name, Case(T=4, N=3, C=2, H=5, L=2, D=2))
    check(data)
    result, expected = (second(data, run, torch.float64) for run in (ops.rnn, reference.rnn))
    for key in data.names:
        assert error(result[key], expected[key]) < 1e-11, key


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, Case]:
    lengths = sorted(draw(st.lists(st.integers(1, 8), max_size=9)), reverse=True)
    cell, hidden = draw(st.sampled_from([*ZOO])), draw(st.integers(2, 80))
    return cell, Case(
        T=lengths[0] if lengths else draw(st.integers(1, 8)),
        N=len(lengths) or draw(st.integers(0, 20)),
        C=draw(st.integers(0, 20)),
        H=hidden,
        L=draw(st.integers(1, 2)),
        D=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        h0=draw(st.booleans()),
        lengths=tuple(lengths),
        dropout=draw(st.sampled_from([0.0, 0.3])),
        sizes=tuple(draw(st.integers(2, 40)) for _ in ZOO[cell].sizes),
    )


@settings(max_examples=60, deadline=None)
@given(call=calls(), seed=st.integers(0, 2**31))
def test_random_calls_equal_the_reference(call: tuple[str, Case], seed: int) -> None:
    data = data_of(*call, seed=seed)
    expected, result = data.reference(), data.run(ops.rnn, torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-10, name


FORCED = """
from rnnext.codegen import build
build.check = lambda declaration: None  # of the other cells, which takes a while
from test_written_cells import EVERY, check, data_of
for cell in ("RMSNormGRU", "Noisy"):
    for case in EVERY:
        check(data_of(cell, case))
"""


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_every_instruction_set_is_right(isa: str) -> None:
    if isa not in rnnext.build_info()["instruction_sets"]:
        pytest.skip(f"{isa} is not compiled in on this processor's architecture")
    result = run_python(FORCED, RNNEXT_ISA=isa)
    if "this processor lacks it" in result.stderr:
        pytest.skip(f"this processor lacks {isa}")
    assert result.returncode == 0, result.stderr


def test_several_python_threads_at_once() -> None:
    run_in_threads([data_of(cell, PACKED, seed=k) for k, cell in enumerate(THOROUGH)])


@pytest.mark.parametrize("kind", ["SLSTM", "Everything", "Zoneout"])
def test_torch_compile_traces_a_layer_whole(kind: str) -> None:
    sizes = {"out_size": 3, "key_size": 2} if kind == "Everything" else {}
    layer = ZOO[kind](3, 6, num_layers=2, dropout=0.2, bidirectional=True, **sizes).double()
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for run in (layer, compiled, layer, compiled):
        torch.manual_seed(7)
        y, states = run(x)
        total = y.sin().sum() + sum(s.square().sum() for s in states)
        inputs = [x, *layer.parameters()]
        gradients = torch.autograd.grad(total, inputs, materialize_grads=True)
        results.append([y, *states, *gradients])
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
