"""The kernels' numbers: every output and gradient, by name, against float64 and torch.nn."""

import os
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch
from cases import (
    CASES,
    CELLS,
    DROPOUT,
    FEW,
    LARGE,
    NN_CELLS,
    PACKED,
    Case,
    Data,
    data_of,
    error,
    spread,
    torch_nn,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnext
from rnnext import ops, reference

cells = pytest.mark.parametrize("cell", CELLS)
nn_cells = pytest.mark.parametrize("cell", NN_CELLS)
cases = pytest.mark.parametrize("case", CASES, ids=str)


def test_poisoned_memory_is_nan(poisoned_memory: None) -> None:
    assert torch.empty(3).isnan().all()


@cells
@cases
def test_float64_equals_the_reference(cell: str, case: Case, poisoned_memory: None) -> None:
    data = Data(cell, case)
    expected, result = data.reference(), data.run(ops.rnn, torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-12, name


@cells
@cases
def test_float32_is_within_1e5_or_twice_the_error_of_torch_nn(
    cell: str, case: Case, poisoned_memory: None
) -> None:
    data = Data(cell, case)
    expected, result = data.reference(), data.run(ops.rnn, torch.float32)
    bounds = dict.fromkeys(data.names, 1e-5)
    if cell in NN_CELLS:
        plain = data.without_dropout()
        exact, theirs = plain.reference(), plain.run(torch_nn, torch.float32)
        bounds = {name: max(1e-5, 2 * error(theirs[name], exact[name])) for name in data.names}
    for name in data.names:
        assert error(result[name], expected[name]) <= bounds[name], name


@nn_cells
@cases
def test_float64_equals_torch_nn(cell: str, case: Case) -> None:
    data = Data(cell, case).without_dropout()
    expected, result = data.run(torch_nn, torch.float64), data.run(ops.rnn, torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-12, name


@cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", [LARGE, FEW, PACKED, DROPOUT], ids=str)
def test_a_repeat_has_the_same_bits(cell: str, dtype: torch.dtype, case: Case) -> None:
    data = Data(cell, case)
    first = data.run(ops.rnn, dtype)
    for _ in range(3):
        again = data.run(ops.rnn, dtype)
        assert all(torch.equal(first[name], again[name]) for name in data.names)


@cells
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_any_number_of_threads_is_right(cell: str, count: int, threads: None) -> None:
    torch.set_num_threads(count)
    few = (Case(T=20, N=1, C=9, H=200), *(Case(T=20, N=n, C=9, H=100, D=2) for n in (5, 7)), PACKED)
    lengths = (90, 90, 90, 81, 80, 77, *[60] * 10, 35, 35, 33, *[12] * 5, 1, 1)
    many = (
        Case(T=40, N=26, C=9, H=33, L=2, D=2),
        Case(T=90, N=26, C=9, H=40, lengths=lengths),  # in several time blocks
    )
    for case in (*few, *many):
        data = Data(cell, case)
        expected, result = data.reference(), data.run(ops.rnn, torch.float64)
        for name in data.names:
            assert error(result[name], expected[name]) < 1e-12, (case, name)


@cells
@pytest.mark.parametrize("count", [2, 3])
def test_one_sequence_by_depth(cell: str, count: int, threads: None, poisoned_memory: None) -> None:
    """W_hh is more than the threads' own caches hold, up to 2 MiB each."""
    torch.set_num_threads(count)
    data = Data(cell, Case(T=70, N=1, C=9, H=901))
    expected = data.reference()
    first, again = (data.run(ops.rnn, torch.float64) for _ in range(2))
    for name in data.names:
        assert error(first[name], expected[name]) < 1e-12, name
        assert torch.equal(first[name], again[name]), name


def test_a_part_without_units_has_no_products(threads: None, poisoned_memory: None) -> None:
    torch.set_num_threads(3)
    data = Data("LSTM_PROJ", Case(T=9, N=1, C=9, H=301, sizes=(5,)))
    expected, result = data.reference(), data.run(ops.rnn, torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-12, name


def second_derivatives(data: Data) -> list[torch.Tensor]:
    inputs = data.inputs(torch.float64)
    outputs = ops.rnn(data.cell, *data.split(inputs), **data.options)
    grads = torch.autograd.grad(outputs[0].sin().sum(), inputs, create_graph=True)
    return list(torch.autograd.grad(sum(g.square().sum() for g in grads), inputs))


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_second_derivatives_by_depth(cell: str, threads: None) -> None:
    data = Data(cell, Case(T=5, N=1, C=9, H=601))
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(second_derivatives(data))
    for alone, together in zip(*results, strict=True):
        assert error(together, alone) < 1e-12


# Blocks of unequal length, which threads need not be in together, and masks whose rows begin
# anywhere; sequences that end in any block; one block; few sequences a thread.
ON_THEIR_OWN = (
    Case(T=101, N=26, C=9, H=33, L=2, dropout=0.3),
    Case(T=90, N=36, C=9, H=40, D=2, lengths=(*[90] * 6, *[61] * 12, *[30] * 14, 8, 7, 1, 1)),
    Case(T=25, N=30, C=20, H=21, h0=False, bias=False),
    Case(T=400, N=6, C=8, H=17),
)


@pytest.mark.parametrize("cell", [*CELLS, "Everything", "Spread", "SLSTM"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("case", ON_THEIR_OWN, ids=str)
def test_each_thread_on_its_own(
    cell: str, case: Case, count: int, threads: None, poisoned_memory: None
) -> None:
    torch.set_num_threads(count)
    data = data_of(cell, case)
    assert kinds(data, count) == ["(many), each on its own"] * 2
    check_own(data)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_thread_on_its_own_without_rows_in_the_last_blocks(
    cell: str, threads: None, poisoned_memory: None
) -> None:
    """These come first in the backward, in which wide gradients begin with zeros."""
    torch.set_num_threads(2)
    data = data_of(cell, Case(T=300, N=24, C=300, H=17, lengths=(*[300] * 6, *[100] * 18)))
    assert kinds(data, 2) == ["(many), each on its own"] * 2
    check_own(data)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_each_thread_on_its_own_but_for_dw(cell: str, threads: None, poisoned_memory: None) -> None:
    """The gradients of large weights are one sum; two blocks of unequal length."""
    torch.set_num_threads(2)
    data = Data(cell, Case(T=37, N=26, C=3000, H=200, h0=False))
    assert kinds(data, 2) == ["(many), each on its own", "(many), each on its own but for dW"]
    check_own(data)


def kinds(data: Data, threads: int) -> list[str]:
    """How rows are shared out, forward and backward."""
    case = data.case
    call = (data.cell, case.T, case.N, case.C, [case.H, *data.sizes], case.heads, data.batch_sizes)
    told = torch.ops.rnnext.plan(*call, dtype=torch.float64, threads=threads)
    return [line.split("by rows ")[1].split(":")[0] for line in told.splitlines()]


def check_own(data: Data) -> None:
    expected = data.reference()
    first, again = (data.run(ops.rnn, torch.float64) for _ in range(2))
    kept = data.run(partial(ops.rnn, checkpoint_every=37), torch.float64)
    for name in data.names:
        assert error(first[name], expected[name]) < 1e-12, name
        assert torch.equal(first[name], again[name]), name
        assert torch.equal(first[name], kept[name]), name


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "Everything"])
def test_second_derivatives_on_their_own(cell: str, threads: None) -> None:
    data = data_of(cell, Case(T=31, N=40, C=9, H=12))
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(second_derivatives(data))
    for alone, *others in zip(*results, strict=True):
        assert all(error(other, alone) < 1e-12 for other in others)


# Directions, or layers; with sequences that end in several time blocks, and masks whose rows begin
# anywhere.
SIDE_BY_SIDE = (
    Case(T=140, N=1, C=16, H=40, L=2, D=2, dropout=0.3),
    Case(T=60, N=3, C=9, H=50, D=2, lengths=(60, 47, 3), h0=False),
    Case(T=130, N=1, C=16, H=40, L=2),
    Case(T=211, N=2, C=9, H=37, L=3, dropout=0.3),
    Case(T=90, N=3, C=9, H=50, L=4, lengths=(90, 61, 3), h0=False),
)


@cells
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("case", SIDE_BY_SIDE, ids=str)
def test_side_by_side(
    cell: str, case: Case, count: int, threads: None, poisoned_memory: None
) -> None:
    torch.set_num_threads(count)
    data = Data(cell, case)
    call = (cell, case.T, case.N, case.C, [case.H, *data.sizes], case.heads, data.batch_sizes)
    stack = {"bidirectional": case.D == 2, "num_layers": case.L}
    told = torch.ops.rnnext.plan(*call, dtype=torch.float64, threads=2, **stack)
    what = "directions" if case.D == 2 else "layers"
    assert told.count(f"{what} side by side, each 1 thread (alone)") == 2
    expected = data.reference()
    first, again = (data.run(ops.rnn, torch.float64) for _ in range(2))
    for name in data.names:
        assert error(first[name], expected[name]) < 1e-12, name
        assert torch.equal(first[name], again[name]), name
    # Without a gradient of x, which both directions add to, and without those of the weights.
    inputs = data.inputs(torch.float64)
    outputs = ops.rnn(cell, *data.split(inputs), **data.options)
    names, given = data.names[len(outputs) :], data.output_grads(torch.float64)
    for some in (slice(1, None), slice(1)):
        grads = torch.autograd.grad(
            outputs, inputs[some], given, retain_graph=True, materialize_grads=True
        )
        for name, grad in zip(names[some], grads, strict=True):
            assert torch.equal(grad, first[name]), name
    # Every bit is the same with checkpoints, where the backward takes one layer after the other.
    kept = data.run(partial(ops.rnn, checkpoint_every=20), torch.float64)
    for name in data.names:
        assert torch.equal(kept[name], first[name]), name


def test_a_layer_that_fails_leaves_no_other_waiting() -> None:
    """Out of memory for the weights of the lowest layer, whose rows the next one waits for."""
    result = run_python(
        """
import resource, torch, rnnext
torch.set_num_threads(2)
T, C = 2000, 25_000
layer = rnnext.LSTM(C, 63, 2)
assert "layers side by side" in rnnext.plan(layer, T, 1)
assert "W_ih packed" in rnnext.plan(layer, T, 1).splitlines()[0]  # 25 MB
x = torch.zeros(T, 1, C)
with torch.no_grad():
    rnnext.LSTM(8, 63, 2)(x[..., :8])  # threads and their memory are there
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (12 << 20), before[1]))
    try:
        layer(x)
    except RuntimeError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_AS, before)
    print(layer(x)[0].shape)
"""
    )
    assert "can't allocate memory" in result.stdout, result.stderr
    assert result.stdout.endswith("torch.Size([2000, 1, 63])\n"), result.stderr


def test_upper_layers_alone_side_by_side(threads: None) -> None:
    torch.set_num_threads(2)
    data = Data("LSTM", Case(T=300, N=1, C=16, H=40, L=4, dropout=0.2))
    inputs = data.inputs(torch.float64)
    expected = data.run(ops.rnn, torch.float64)
    outputs = ops.rnn("LSTM", *data.split(inputs), **data.options)
    names, given = data.names[len(outputs) :], data.output_grads(torch.float64)
    upper = slice(len(inputs) - 8, None)  # the weights and biases of the last two layers
    grads = torch.autograd.grad(outputs, inputs[upper], given, materialize_grads=True)
    for name, grad in zip(names[upper], grads, strict=True):
        assert torch.equal(grad, expected[name]), name


@cells
def test_inference_gives_the_bits_of_training(cell: str, device: str) -> None:
    data = Data(cell, LARGE, device=device)
    inputs = data.inputs(torch.float32)
    training = ops.rnn(cell, *data.split(inputs), **data.options)
    with torch.no_grad():
        inference = ops.rnn(cell, *data.split(inputs), **data.options)
    assert all(torch.equal(a, b) for a, b in zip(training, inference, strict=True))
    assert not any(t.requires_grad for t in inference)


@cells
def test_strided_inputs(cell: str, device: str) -> None:
    data = Data(cell, Case(T=6, N=5, C=8, H=12, L=2, D=2), device=device)
    expected = data.reference()

    def run(cell, x, h0, weights, **options):  # type: ignore[no-untyped-def]
        strided = [spread(t) for t in (x, *h0, *weights)]
        assert not any(t.is_contiguous() for t in strided)
        return ops.rnn(cell, *data.split(strided), **options)

    result = data.run(run, torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-12, name


def test_expanded_input_and_gradient(device: str) -> None:
    data = Data("LSTM", Case(T=6, N=5, C=8, H=12), device=device)
    data.x = data.x[:, :1].expand(6, 5, 8)
    data.grads[0] = data.grads[0][:1, :1, :1].expand(6, 5, 12)
    expected, result = data.reference(), data.run(ops.rnn, torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-12, name


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 33), (40, 30, 64)])
def test_dropout_masks_are_those_of_the_reference(
    p: float, shape: tuple[int, int, int], device: str
) -> None:
    # An identity second layer shows the dropped output of the first.
    steps, batch, hidden = shape
    eye, zero = torch.eye(hidden, device=device), torch.zeros(hidden, hidden, device=device)
    x = torch.rand(steps, batch, hidden) + 0.5
    seed = torch.tensor(-(2**40) + 17)
    weights = [eye, zero, eye, zero]
    y, _ = ops.rnn("RNN_RELU", x.to(device), [], weights, seed=seed, num_layers=2, dropout=p)
    expected = reference.apply_dropout(x.view(-1, hidden), p, seed, 0).view_as(x)
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-6, atol=0)


def test_dropout_is_the_same_for_any_number_of_threads(threads: None) -> None:
    data = Data("GRU", Case(T=50, N=40, C=8, H=64, L=2, dropout=0.3))
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(data.run(ops.rnn, torch.float64))
    for name in data.names:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(results[0][name], results[2][name], rtol=1e-12, atol=1e-12)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, Case]:
    lengths = sorted(draw(st.lists(st.integers(1, 20), max_size=12)), reverse=True)
    steps = lengths[0] if lengths else draw(st.integers(1, 20))
    return draw(st.sampled_from(CELLS)), Case(
        T=steps,
        N=len(lengths) or draw(st.integers(0, 70)),
        C=draw(st.integers(1, 70)),
        H=draw(st.integers(1, 140)),
        L=draw(st.integers(1, 3)),
        D=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        h0=draw(st.booleans()),
        lengths=tuple(lengths),
        dropout=draw(st.sampled_from([0.0, 0.0, 0.3])),
    )


@settings(max_examples=100, deadline=None)
@given(call=calls(), seed=st.integers(0, 2**31))
def test_random_calls_equal_the_reference(call: tuple[str, Case], seed: int) -> None:
    data = Data(*call, seed=seed)
    expected, result = data.reference(), data.run(ops.rnn, torch.float64)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-11, name


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process that finds rnnext and the tests' modules where this one does."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


# Every height and width of the products' tiles, and what is left over; and one wide row.
TILES = [Case(T=1 + 32 // N, N=N, C=5 * N % 67, H=11 * N % 131) for N in range(1, 34)]
TILES += [Case(T=1, N=1, C=9001, H=7)]
# Gradients of weights that are written row by row: of up to 4 rows, wider than a tile of one row;
# some in several panels. And of 5 rows, which are not.
SHALLOW = (
    Case(T=1, N=1, C=300, H=270),
    Case(T=3, N=1, C=4200, H=17, L=2),
    Case(T=2, N=2, C=513, H=70, D=2),
    Case(T=5, N=1, C=300, H=33),
    Case(T=3, N=0, C=300, H=270),  # of no rows: zeros
)
TILES += SHALLOW


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_tile(dtype: torch.dtype, poisoned_memory: None) -> None:
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    for case in TILES:
        data = Data("LSTM", case)
        expected, result = data.reference(), data.run(ops.rnn, dtype)
        for name in data.names:
            assert error(result[name], expected[name]) < bound, (case, name)


FORCED = """
import torch, rnnext
from cases import CASES, CELLS, Data, error
from test_kernels import TILES
from rnnext import ops
assert rnnext.build_info()["instruction_set"] == "{isa}"
for cell in CELLS:
    for case in [*CASES, *(TILES if cell == "GRU" else [])]:
        data = Data(cell, case)
        expected = data.reference()
        for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            result = data.run(ops.rnn, dtype)
            for name in data.names:
                assert error(result[name], expected[name]) < bound, (cell, case, dtype, name)
"""


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_every_instruction_set_is_right(isa: str) -> None:
    if isa not in rnnext.build_info()["instruction_sets"]:
        pytest.skip(f"{isa} is not compiled in on this processor's architecture")
    result = run_python(FORCED.format(isa=isa), RNNEXT_ISA=isa)
    if "this processor lacks it" in result.stderr:
        pytest.skip(f"this processor lacks {isa}")
    assert result.returncode == 0, result.stderr


def test_an_unknown_instruction_set_is_named() -> None:
    result = run_python("import rnnext; rnnext.build_info()", RNNEXT_ISA="sse9")
    assert result.returncode != 0
    assert "RNNEXT_ISA=sse9 is not one of: " in result.stderr


FORK = """
import multiprocessing, torch, rnnext
torch.set_num_threads(2)
lstm = rnnext.LSTM(64, 64)
x = torch.randn(20, 8, 64)
if {before}:
    y, _ = lstm(x)  # OpenMP's threads now exist; a backward here could make torch refuse one there

def work():
    y, _ = lstm(x)
    y.sum().backward()
    sums.send((y.detach().numpy(), lstm.weight_hh_l0.grad.sum().item()))

context = multiprocessing.get_context("fork")
received, sums = context.Pipe(duplex=False)
child = context.Process(target=work)
child.start()
theirs, gradient = received.recv()
child.join()
assert child.exitcode == 0
y, _ = lstm(x)
y.sum().backward()
torch.testing.assert_close(torch.from_numpy(theirs), y.detach())
torch.testing.assert_close(gradient, lstm.weight_hh_l0.grad.sum().item(), rtol=1e-4, atol=1e-4)
"""


@pytest.mark.parametrize("before", [False, True])
def test_a_forked_process_computes_too(before: bool) -> None:
    """Whether or not this one has computed before; and this one goes on."""
    result = run_python(FORK.format(before=before))
    assert result.returncode == 0, result.stderr


def run_in_threads(data: list[Data]) -> None:
    """Each in a Python thread of its own, all at once: the results are those of one alone."""
    expected = [d.run(ops.rnn, torch.float32) for d in data]
    wrong: list[str] = []

    def work(k: int) -> None:
        for _ in range(5):
            result = data[k].run(ops.rnn, torch.float32)
            wrong.extend(n for n in data[k].names if error(result[n], expected[k][n]) > 1e-6)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(len(data))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_several_python_threads_at_once(count: int, threads: None) -> None:
    torch.set_num_threads(count)
    run_in_threads([Data(cell, LARGE, seed=k) for k, cell in enumerate(CELLS)])
    run_in_threads([Data(cell, FEW, seed=k) for k, cell in enumerate(CELLS)])
