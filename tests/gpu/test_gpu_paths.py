"""RNNEXT_CUDA_PATH: what each path must take, what it must refuse, and that they agree."""

import itertools

import pytest
import torch
from cases import Case, Data, error
from gpu_cases import PERSISTENT, SIZES
from on_device import DEVICE, MATHS, check, tf32_allowed

from rnnext import ops

pytestmark = pytest.mark.cuda_only
PATH = "RNNEXT_CUDA_PATH"
CELLS = ("LSTM", "GRU", "RNN_TANH")
LOW = ("float32", "tf32", "bfloat16", "float16")


@pytest.mark.parametrize(
    ("case", "cell", "math"), [*itertools.product(PERSISTENT, CELLS, LOW)], ids=str
)
def test_one_launch_takes_what_it_is_for(
    case: Case, cell: str, math: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if math == "float32" and case.H > 768:
        pytest.skip("W_hh in float32 need not fit a chip")
    monkeypatch.setenv(PATH, "grid")
    check(cell, case, math)


@pytest.mark.parametrize("H", [1, 17, 64, 200, 256])
@pytest.mark.parametrize("math", LOW)
@pytest.mark.parametrize("cell", CELLS)
def test_clusters_take_what_they_are_for(
    cell: str, math: str, H: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("clusters are of compute capability 9.0 and later")
    monkeypatch.setenv(PATH, "cluster")
    for N in (1, 20, 300):
        check(cell, Case(T=9, N=N, C=5, H=H), math)


def forward(data: Data, dtype: torch.dtype) -> torch.Tensor:
    inputs = [t.detach() for t in data.inputs(dtype)]
    return ops.rnn(data.cell, *data.split(inputs), **data.options)[0]


def test_a_path_that_cannot_take_a_call_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two gigabytes of W_hh are more than the registers and shared memory of any chip."""
    size = 2**14
    options = {"device": DEVICE, "dtype": torch.bfloat16}
    x, w_ih = torch.ones(2, 1, 1, **options), torch.ones(4 * size, 1, **options)
    w_hh = torch.zeros(4 * size, size, **options)
    monkeypatch.setenv(PATH, "persistent")
    with pytest.raises(RuntimeError, match=r"RNNEXT_CUDA_PATH=persistent"):
        ops.rnn("LSTM", x, [], [w_ih, w_hh])
    monkeypatch.setenv(PATH, "auto")
    y = ops.rnn("LSTM", x, [], [w_ih, w_hh])[0]
    assert (y[0] == y[0, 0, 0]).all()
    assert y[1, 0, 0] > y[0, 0, 0] > 0


def test_an_unknown_path_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATH, "fast")
    known = "auto, steps, persistent, grid, cluster"
    with pytest.raises(RuntimeError, match=rf"RNNEXT_CUDA_PATH=fast is not one of: {known}"):
        forward(Data("GRU", SIZES[0], device=DEVICE), torch.float32)


@pytest.mark.parametrize("cell", CELLS)
def test_the_variable_is_read_at_each_call(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every path gives what the others give, backward by one after forward by another too."""
    data = Data(cell, PERSISTENT[0], device=DEVICE)
    for math in LOW:
        how, found = MATHS[math], []
        for first, then in itertools.product(("steps", "grid", "persistent", "auto"), repeat=2):
            inputs = data.inputs(how.dtype)
            with tf32_allowed(how.tf32):
                monkeypatch.setenv(PATH, first)
                outputs = ops.rnn(cell, *data.split(inputs), **data.options)
                monkeypatch.setenv(PATH, then)
                grads = torch.autograd.grad(outputs, inputs, data.output_grads(how.dtype))
            found.append([t.detach() for t in (*outputs, *grads)])
        for results in found[1:]:
            for name, a, b in zip(data.names, results, found[0], strict=True):
                assert error(a, b) < 2 * how.bound, (math, name)


def test_float32_is_exact_unless_tf32_is_allowed() -> None:
    """Its error shows which products were made: TF32 has ten bits of a mantissa."""
    data = Data("LSTM", Case(T=9, N=20, C=65, H=650), device=DEVICE)
    exact = data.reference()["y"]
    errors = {}
    for allowed in (False, True):
        with tf32_allowed(allowed):
            errors[allowed] = error(forward(data, torch.float32), exact)
    assert errors[False] < 2e-6
    assert 1e-5 < errors[True] < 1e-3
