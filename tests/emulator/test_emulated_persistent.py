"""Persistent scans: every cell, exchange, tiling, precision and order of threads beside the
reference.
"""

from __future__ import annotations

import pytest
import torch
from cases import NN_CELLS, PACKED, Case, Data, error
from emulated import SHARED

from rnnext import ops, reference

CASES = (
    Case(T=5, N=3, C=4, H=7),
    Case(T=1, N=1, C=1, H=1),
    Case(T=3, N=9, C=1, H=17, D=2),
    Case(T=9, N=3, C=0, H=40, D=2, h0=False),
    Case(T=33, N=2, C=5, H=24, L=2, bias=False),
    Case(T=4, N=35, C=3, H=20),
    Case(T=3, N=20, C=3, H=130),
    PACKED,
    Case(T=20, N=12, C=5, H=9, D=2, lengths=(20, 20, 20, 15, 15, 9, 9, 9, 2, 2, 1, 1)),
    Case(T=7, N=1, C=4, H=30, lengths=(7,), h0=False),
)


def run(
    data: Data, dtype: torch.dtype | None = None, checkpoint_every: int = 0
) -> dict[str, torch.Tensor]:
    def function(cell, x, h0, weights, **options):  # type: ignore[no-untyped-def]
        return torch.ops.rnnext.rnn(
            cell, x, h0, weights, *options.values(), dtype, checkpoint_every
        )

    return data.run(function, torch.float32)


@pytest.fixture(autouse=True, params=["grid", "cluster"])
def path(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    monkeypatch.setenv("RNNEXT_CUDA_PATH", request.param)
    return str(request.param)


@pytest.mark.parametrize("cell", NN_CELLS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_equals_the_reference(cell: str, case: Case, poisoned_memory: None) -> None:
    data = Data(cell, case)
    expected, result = data.reference(), run(data)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-5, name


@pytest.mark.parametrize("cell", NN_CELLS)
@pytest.mark.parametrize("case", CASES[2:6], ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_operands(cell: str, case: Case, dtype: torch.dtype, bound: float) -> None:
    data = Data(cell, case)
    expected, result = data.reference(), run(data, dtype)
    for name in data.names:
        limit = 20 * bound if cell == "RNN_RELU" and name.startswith("d") else bound
        assert error(result[name], expected[name]) < limit, name


@pytest.mark.parametrize("cell", NN_CELLS)
def test_tf32_where_it_is_allowed(cell: str) -> None:
    data = Data(cell, Case(T=6, N=5, C=9, H=40))
    expected = data.reference()
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        result = run(data)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert not torch.equal(result["y"], run(data)["y"])
    for name in data.names:
        limit = 5e-2 if cell == "RNN_RELU" and name.startswith("d") else 2e-3
        assert error(result[name], expected[name]) < limit, name


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("multiprocessors", [1, 3, 5, 8, 40])
def test_any_chip_gives_the_same_bits(cell: str, multiprocessors: int, path: str) -> None:
    """Sequences in groups, or in several launches; units in slices of other sizes."""
    if path == "cluster":
        pytest.skip("warps share out the depth by the number of rows: see the next test")
    data = Data(cell, Case(T=6, N=40, C=3, H=12, D=2))
    expected = run(data)
    torch.ops.rnnext_emulator.set_device(multiprocessors, SHARED, 16, 7)
    result = run(data)
    for name in data.names:
        assert torch.equal(result[name], expected[name]), name


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize(
    ("cluster", "shared"),
    [(1, SHARED), (2, SHARED), (3, SHARED), (7, SHARED), (4, 64 * 1024), (16, 48 * 1024)],
)
def test_any_size_of_cluster(cell: str, cluster: int, shared: int, path: str) -> None:
    if path == "grid":
        pytest.skip("has no clusters")
    data = Data(cell, Case(T=6, N=18, C=3, H=50))
    torch.ops.rnnext_emulator.set_device(132, shared, cluster, 7)
    expected, result = data.reference(), run(data)
    for name in data.names:
        assert error(result[name], expected[name]) < 1e-5, name


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_threads_gives_the_same_bits(cell: str, seed: int) -> None:
    data = Data(cell, Case(T=12, N=18, C=3, H=40, D=2))
    expected = run(data)
    torch.ops.rnnext_emulator.set_device(132, SHARED, 16, 100 + seed)
    result = run(data)
    for name in data.names:
        assert torch.equal(result[name], expected[name]), name


@pytest.mark.parametrize("case", [Case(T=13, N=4, C=3, H=20, L=2, D=2), PACKED], ids=str)
def test_checkpoints_give_the_same_bits(case: Case) -> None:
    data = Data("LSTM", case)
    expected = run(data)
    for every in (1, 4, 50):
        result = run(data, checkpoint_every=every)
        for name in data.names:
            assert torch.equal(result[name], expected[name]), (every, name)


def test_inference_gives_the_bits_of_training() -> None:
    data = Data("GRU", PACKED)
    inputs = data.inputs(torch.float32)
    training = ops.rnn("GRU", *data.split(inputs), **data.options)
    with torch.no_grad():
        inference = ops.rnn("GRU", *data.split(inputs), **data.options)
    assert all(torch.equal(a, b) for a, b in zip(training, inference, strict=True))


def test_infinities_stay() -> None:
    x = torch.zeros(3, 2, 1)
    x[0, 0] = float("inf")
    weights = [torch.ones(9, 1), torch.full((9, 9), 0.5)]
    (y, _), (expected, _) = (f("RNN_RELU", x, [], weights) for f in (ops.rnn, reference.rnn))
    assert torch.equal(y, expected)


def test_what_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    data = Data("LSTM", Case(T=2, N=1, C=2, H=64))
    torch.ops.rnnext_emulator.set_device(4, 20_000, 4, 1)
    with pytest.raises(RuntimeError, match="the weights do not fit on the device; unset it"):
        run(data)
    monkeypatch.setenv("RNNEXT_CUDA_PATH", "auto")
    assert error(run(data)["y"], data.reference()["y"]) < 1e-5
    monkeypatch.setenv("RNNEXT_CUDA_PATH", "fast")
    with pytest.raises(RuntimeError, match="RNNEXT_CUDA_PATH=fast is not one of: auto"):
        run(data)
    monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    with pytest.raises(RuntimeError, match="LSTM_PROJ can't be done so: the cell has no"):
        run(Data("LSTM_PROJ", Case(T=2, N=1, C=2, H=6)))
