"""CUDA's own: streams, graphs, devices, memory, and neighbours on the same chip."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from cases import Case, Data, error
from gpu_cases import REPEATED
from on_device import DEVICE, assert_same_bits, data_for, paths, wait_for
from torch import Tensor

import rnnext
from rnnext import ops

pytestmark = pytest.mark.cuda_only
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
cells = pytest.mark.parametrize("cell", ["LSTM", "GRU", "LightGRU"])
CASE = Case(T=35, N=20, C=33, H=200)
STACK = Case(T=20, N=7, C=17, H=64, L=2, D=2, lengths=(20, 20, 13, 9, 9, 2, 1))
MEGABYTE = 2**20


def synchronize() -> None:
    wait_for(torch.cuda.current_stream(), torch.cuda.default_stream())
    torch.cuda.synchronize()


@paths
@cells
@dtypes
def test_the_stream_that_is_current_is_used(cell: str, dtype: torch.dtype, path: str) -> None:
    """The input is only there when a long product on that stream has ended."""
    data = data_for(cell, CASE)
    expected = data.run(ops.rnn, dtype)
    inputs, toward = data.inputs(dtype), data.output_grads(dtype)
    x = inputs[0].detach().clone()
    synchronize()
    side, a = torch.cuda.Stream(), torch.randn(4096, 4096, device=DEVICE)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = x * float("nan")
        for _ in range(20):
            a = a @ a * 1e-4
        late.copy_(x)
        inputs[0] = late.requires_grad_()
        outputs = ops.rnn(data.cell, *data.split(inputs), **data.options)
        grads = torch.autograd.grad(outputs, inputs, toward)
    wait_for(side)
    found = dict(zip(data.names, [*outputs, *grads], strict=True))
    assert_same_bits(found, expected)


@paths
@cells
@dtypes
def test_two_streams_at_once(cell: str, dtype: torch.dtype, path: str) -> None:
    """Kernels that wait for each other's blocks must not wait for those of another launch."""
    cases = (CASE, REPEATED[2], CASE, REPEATED[1])
    runs = [data_for(cell, case).prepared(ops.rnn, dtype) for case in cases]
    expected = [run() for run in runs]
    streams = [torch.cuda.Stream() for _ in runs]
    synchronize()
    found: list[list[dict[str, Tensor]]] = [[] for _ in runs]
    for _ in range(5):
        for k, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[k].append(runs[k]())
    wait_for(*streams)
    for results, first in zip(found, expected, strict=True):
        for result in results:
            assert_same_bits(result, first)


SPIN = """
extern "C" __global__ void spin(int cycles, int* sink) {
  extern __shared__ int held[];
  held[threadIdx.x] = threadIdx.x;
  const long long start = clock64();
  while (clock64() - start < cycles) {}
  if (cycles < 0) sink[0] = held[0];
}
"""


def occupy_by_products(stream: torch.cuda.Stream) -> None:
    """Tens of milliseconds in which every SM has work."""
    with torch.cuda.stream(stream):
        a, b = torch.randn(2, 8192, 8192, device=DEVICE, dtype=torch.bfloat16)
        for _ in range(40):
            torch.mm(a, b)


def occupy_by_blocks(stream: torch.cuda.Stream) -> None:
    """Most SMs are held, with most of their shared memory, for tens of milliseconds."""
    shared = 160 * 1024
    compile_kernel = getattr(torch.cuda, "_compile_kernel", None)
    spin = compile_kernel(SPIN, "spin") if compile_kernel else None
    if not hasattr(spin, "set_shared_memory_config"):
        pytest.skip(f"torch {torch.__version__} launches no kernel with so much shared memory")
    spin.set_shared_memory_config(shared)
    sink = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    stream.wait_stream(torch.cuda.current_stream())
    blocks = 3 * torch.cuda.get_device_properties(0).multi_processor_count // 4
    spin((blocks, 1, 1), (256, 1, 1), [150_000_000, sink], shared_mem=shared, stream=stream)
    sink.record_stream(stream)


@paths
@cells
@pytest.mark.parametrize("occupy", [occupy_by_products, occupy_by_blocks])
def test_beside_a_neighbour_that_holds_the_chip(
    cell: str, occupy: Callable[[torch.cuda.Stream], None], path: str
) -> None:
    """Neither a deadlock nor another result, however few SMs are free at the launch."""
    for case in (CASE, REPEATED[2]):
        run = data_for(cell, case).prepared(ops.rnn, torch.bfloat16)
        expected = run()
        synchronize()
        hog, mine = torch.cuda.Stream(), torch.cuda.Stream()
        occupy(hog)
        with torch.cuda.stream(mine):
            found = [run() for _ in range(3)]
        wait_for(mine, hog)
        for result in found:
            assert_same_bits(result, expected)


@paths
@cells
@dtypes
@pytest.mark.parametrize("case", [CASE, STACK], ids=str)
def test_a_graph_is_captured_and_replayed_with_other_inputs(
    cell: str, dtype: torch.dtype, case: Case, path: str
) -> None:
    data = data_for(cell, case)
    inputs, toward = data.inputs(dtype), data.output_grads(dtype)

    def step() -> list[Tensor]:
        outputs = ops.rnn(data.cell, *data.split(inputs), **data.options)
        return [*outputs, *torch.autograd.grad(outputs, inputs, toward)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    wait_for(side)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for k in range(3):
        with torch.no_grad():
            for t in (*inputs, *toward):
                t.mul_(1 + 0.25 * k)
        for _ in range(2):
            graph.replay()
        synchronize()
        results = [t.clone() for t in captured]
        assert all(map(torch.equal, results, step()))


@paths
def test_a_layer_in_a_graphed_callable(path: str) -> None:
    """Torch's own way to graph a module, forward and backward."""
    torch.manual_seed(0)
    layer = rnnext.LSTM(33, 200, 2, device=DEVICE)
    x = torch.randn(20, 7, 33, device=DEVICE, requires_grad=True)
    y, _ = layer(x)
    expected = [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    class Output(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]

    graphed = torch.cuda.make_graphed_callables(Output(), (torch.randn_like(x).requires_grad_(),))
    for _ in range(3):
        y = graphed(x)
        found = [y.clone(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]
        for a, b in zip(found, expected, strict=True):
            assert error(a, b) < 1e-5


@paths
@dtypes
@pytest.mark.parametrize("case", [CASE, STACK], ids=str)
def test_nothing_waits_for_the_device(case: Case, dtype: torch.dtype, path: str) -> None:
    """As far as torch knows: its own calls that synchronise are errors here."""
    data = Data("LSTM", case, device=DEVICE)
    data.run(ops.rnn, dtype)
    inputs, toward = data.inputs(dtype), data.output_grads(dtype)
    data.seed = torch.tensor(5)  # on the CPU, as batch_sizes are
    synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = ops.rnn("LSTM", *data.split(inputs), **{**data.options, "dropout": 0.3})
        torch.autograd.grad(outputs, inputs, toward)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@paths
def test_a_call_returns_before_the_device_is_done(path: str) -> None:
    """So a host waits for nothing: the queue is still full when the calls have returned."""
    data = Data("LSTM", Case(T=129, N=20, C=33, H=650), device=DEVICE)
    inputs = [t.detach() for t in data.inputs(torch.bfloat16)]
    ops.rnn("LSTM", *data.split(inputs), **data.options)
    synchronize()
    torch.cuda._sleep(200_000_000)  # a tenth of a second
    ops.rnn("LSTM", *data.split(inputs), **data.options)
    assert not torch.cuda.current_stream().query()
    synchronize()


@paths
@cells
def test_memory_does_not_grow(cell: str, path: str) -> None:
    run = data_for(cell, CASE).prepared(ops.rnn, torch.bfloat16)

    def allocated() -> int:
        for _ in range(10):
            run()
        synchronize()
        gc.collect()
        return torch.cuda.memory_allocated()

    before = allocated()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    assert allocated() == before
    assert allocated() == before
    torch.cuda.empty_cache()
    # Beside torch's allocator too, but for what other processes take meanwhile.
    assert torch.cuda.mem_get_info()[0] >= free - 8 * MEGABYTE


@paths
def test_memory_is_the_caching_allocators(path: str) -> None:
    """A second call needs nothing new from the driver."""
    run = Data("LSTM", CASE, device=DEVICE).prepared(ops.rnn, torch.float32)
    for _ in range(3):
        run()
    synchronize()
    before = torch.cuda.memory_stats()["num_device_alloc"]
    for _ in range(5):
        run()
    assert torch.cuda.memory_stats()["num_device_alloc"] == before


@paths
def test_what_a_call_frees_is_not_used_later(path: str) -> None:
    """Scratch of a kernel that still runs, on a stream of its own, is not another stream's yet."""
    run = Data("GRU", REPEATED[2], device=DEVICE).prepared(ops.rnn, torch.bfloat16)
    expected = run()
    side = torch.cuda.Stream()
    synchronize()
    for _ in range(10):
        with torch.cuda.stream(side):
            result = run()
        junk = [torch.full((1 << k,), float("nan"), device=DEVICE) for k in range(10, 22)]
        del junk
        wait_for(side)
        assert_same_bits(result, expected)


def test_the_current_device_stays_what_it_was() -> None:
    before = torch.cuda.current_device()
    Data("LSTM", CASE, device=DEVICE).run(ops.rnn, torch.float32)
    assert torch.cuda.current_device() == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one() -> None:
    for cell in ("LSTM", "LightGRU"):
        results = []
        for device in ("cuda:0", "cuda:1"):
            data = data_for(cell, CASE)
            data.device = device
            with torch.cuda.device(0):
                results.append({k: v.cpu() for k, v in data.run(ops.rnn, torch.float32).items()})
                assert torch.cuda.current_device() == 0
        for name, value in results[0].items():
            assert error(results[1][name], value) < 1e-5, name
        layer = rnnext.GRU(5, 7, device="cuda:0")
        with pytest.raises(RuntimeError, match=r"found input tensor at cuda:1"):
            layer(torch.randn(3, 2, 5, device="cuda:1"))


def test_the_module_is_imported_without_touching_the_device() -> None:
    """A process that forks, or has another use for the device, is not surprised by a context."""
    code = "import torch, rnnext; assert not torch.cuda.is_initialized()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
