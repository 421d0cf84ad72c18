"""The arithmetic of the floor by hand, the report of a result, and that of a profile."""

import json
from pathlib import Path

import pytest
import report
import where
from peers import Shape, shape_of
from roofline import Machine, floor, products

MACHINE = Machine(
    threads=2,
    gflops={"float32": 100.0},
    gigabytes=[(1000, 400.0), (10_000, 150.0), (100_000, 200.0)],
    pointwise={"LSTM": (1.0, 2.0, 3.0)},
)


def test_operations_are_products_and_pointwise_work() -> None:
    shape = Shape(10, 20, 100, L=2, D=2)
    weights = 2 * 400 * (100 + 100) + 2 * 400 * (200 + 100)
    count = 200 * weights - 20 * 4 * 400 * 100  # 20 sequences begin in each of 4 scans
    assert products(4, "inference", shape) == 2 * count
    assert products(4, "training", shape) == 6 * count

    units = 4 * 200 * 100
    least = floor(MACHINE, "LSTM", "training", shape, "float32")
    # On two threads of 2 + 3 nanoseconds a unit.
    assert least.operations == pytest.approx(6 * count / 100e9 + units * 5e-9 / 2)
    assert least.bound == "operations"
    assert least.seconds == least.operations


def test_bytes_are_the_recurrent_weights_at_each_step() -> None:
    shape = Shape(10, 1, 50)
    least = floor(MACHINE, "LSTM", "training", shape, "float32")
    # 40 kB, 20 a thread: in the cache of the largest set, in each of ten steps and back in nine.
    assert least.bytes == pytest.approx(19 * 40e3 / 200e9)
    inference = floor(MACHINE, "LSTM", "inference", shape, "float32")
    assert inference.bytes == pytest.approx(10 * 40e3 / 200e9)
    # In bfloat16 10 kB a thread, whose set was measured as slower than a larger one.
    assert floor(MACHINE, "LSTM", "training", shape, "bfloat16").bytes == least.bytes / 2
    assert MACHINE.bandwidth(1e9) == 200e9


def test_a_processor_without_bfloat16_has_the_peak_of_float32() -> None:
    assert MACHINE.peak("bfloat16") == MACHINE.peak("float32")


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("35,20,200", Shape(35, 20, 200)),
        ("5,1,8,L2,D2,packed", Shape(5, 1, 8, L=2, D=2, packed=True)),
        ("5,1,8,packed", Shape(5, 1, 8, packed=True)),
    ],
)
def test_shapes_are_read(text: str, shape: Shape) -> None:
    assert shape_of(text) == shape


@pytest.mark.parametrize("text", ["", "5,1", "0,1,8", "5,1,8,D3", "5,1,8,padded"])
def test_other_shapes_are_refused(text: str) -> None:
    with pytest.raises(Exception, match="expected T,N,H"):
        shape_of(text)


def row(cell: str, shape: Shape, dtype: str, ours: float, **more: float) -> dict[str, object]:
    return {
        "cell": cell,
        "mode": "training",
        "dtype": dtype,
        "threads": 2,
        "shape": str(shape),
        **vars(shape),
        "ratio": 4.0 / ours,
        "milliseconds": {"torch": 4.0, "rnnext": ours, **more},
        "gflops_per_second": 1.0,
        "bound": "operations",
        "fraction": 0.5,
        "errors": {"torch": 1e-7, "rnnext": 2e-7},
    }


def test_a_report_is_made_of_a_result(tmp_path: Path) -> None:
    plain, packed = Shape(5, 2, 8), Shape(5, 2, 8, packed=True)
    result = {
        "about": {
            "processor": "a processor",
            "threads": [2],
            "torch": "2",
            "rnnext": "0",
            "date": "2026-01-01",
            "build": {"instruction_set": "avx2"},
        },
        "machines": [vars(MACHINE)],
        "rows": [
            row("LSTM", plain, "float32", 2.0, loop=8.0),
            row("LSTM", packed, "float32", 8.0, padded=4.0),
            row("LSTM", plain, "bfloat16", 1.0, float32=2.0),
        ],
        "refused": ["GRU is wrong"],
    }
    report.write(json.loads(json.dumps(result)), tmp_path / "cpu.json")
    text = (tmp_path / "cpu.md").read_text()
    assert "- GRU is wrong" in text
    assert "| T5 N2 H8 packed | 0.50 |" in report.short(result)
    assert "2.00 (aim 1.35: met)" in text
    assert "0.50 (aim 2.00: **not met**)" in text
    assert "2.00 (aim 1.70: met)" in text  # bfloat16 over float32
    assert "0.50 (aim 1.50: **not met**)" in text  # packed over padded
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")


def test_profile_of_perfs_report() -> None:
    text = """# Samples: 8  of event 'cpu-clock:ppp'
# Event count (approx.): 1500000000
    50.00%  _ops.so       [.] rnnext::avx512::gemm_tile_of<rnnext::avx512::PlainProduct<float>, 6>
    20.00%  _ops.so       [.] rnnext::avx512::backward<float, rnnext::LSTM, 0>
    20.00%  libgomp.so.1  [.] 0x000000000001de62
    10.00%  python3       [.] _PyEval_EvalFrameDefault
"""
    assert where.shares_of(text, seconds=2.0) == pytest.approx(
        {
            "products": 0.375,
            "elementwise": 0.15,
            "packing": 0,
            "waiting": 0.15,
            "other": 0.075,
            "asleep": 0.25,
        }
    )
    with pytest.raises(ValueError, match="counts nothing"):
        where.shares_of("", seconds=2.0)
