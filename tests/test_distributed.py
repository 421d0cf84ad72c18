"""DistributedDataParallel: two processes on the CPU learn as one does from both their batches."""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence

import rnnext

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without it")
T, N, C, H = 6, 4, 3, 5
LENGTHS = [[6, 3], [5, 5, 1, 1]]  # of each process; so they have batches of different sizes
SECONDS = 120  # after which what hangs is given up


class Fresh(rnnext.Recurrent):
    """A cell that is in no cache, so both processes find that it must be compiled."""

    gates = ("z", "n")

    def step(z, n, h):  # type: ignore[no-untyped-def]
        z = torch.sigmoid(z)
        return (1 - z) * torch.tanh(n) + z * h + 0.125 * z * n


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(C, C)
        self.lstm = rnnext.LSTM(C, H, 2, bidirectional=True)
        self.fresh = Fresh(2 * H, H)
        self.last = nn.Linear(H, 1)

    def forward(self, x: Tensor, lengths: list[int] | None = None) -> Tensor:
        x = self.first(x)
        if lengths is None:
            return self.last(self.fresh(self.lstm(x)[0])[0])
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        return self.last(self.fresh(self.lstm(packed)[0])[0].data)


def model() -> Model:
    torch.manual_seed(0)
    return Model().double()


def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(T, n, C, dtype=torch.float64) for n in (N, N, *map(len, LENGTHS))]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    named = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return named


def work(rank: int, folder: Path) -> None:
    """What each process does; its gradients and weights go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=SECONDS),
    )
    found: dict[str, Any] = {}
    plain, (*padded, first, second) = model(), batches()
    parallel = DistributedDataParallel(plain, find_unused_parameters=False)
    dist.barrier()
    parallel(padded[rank]).square().mean().backward()
    found["padded"] = gradients(plain)
    parallel((first, second)[rank], LENGTHS[rank]).square().sum().backward()
    found["packed"] = gradients(plain)
    with parallel.no_sync():
        parallel(padded[rank]).square().mean().backward()
    parallel(padded[rank]).square().mean().backward()
    found["accumulated"] = gradients(plain)

    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        parallel(padded[rank]).square().mean().backward()
        optimizer.step()
    found["weights"] = {name: p.detach() for name, p in plain.named_parameters()}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """What both processes found, and the cache that they began with nothing in."""
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNEXT_CACHE", str(folder / "cache"))
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        context = mp.spawn(work, (folder,), nprocs=2, join=False)
        try:
            # Each call waits for one of them.
            done = context.join(timeout=SECONDS) or context.join(timeout=SECONDS)
            assert done, f"the processes took more than {SECONDS} seconds"
        finally:
            for process in context.processes:
                process.kill()
                process.join()
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)], folder / "cache"


def assert_found(results: list[dict[str, Any]], what: str, expected: dict[str, Tensor]) -> None:
    for result in results:
        assert list(result[what]) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(result[what][name], value, rtol=1e-11, atol=1e-12)


def test_gradients_are_those_of_the_whole_batch(results: Any) -> None:
    whole = model()
    whole(torch.cat(batches()[:2], 1)).square().mean().backward()
    expected = gradients(whole)
    assert_found(results[0], "padded", expected)
    assert_found(results[0], "accumulated", {name: 2 * g for name, g in expected.items()})


def test_packed_batches_of_different_sizes(results: Any) -> None:
    whole = model()
    x, lengths = torch.cat(batches()[2:], 1), LENGTHS[0] + LENGTHS[1]
    (whole(x, lengths).square().sum() / 2).backward()  # the processes' gradients are averaged
    assert_found(results[0], "packed", gradients(whole))


def test_weights_stay_the_same_in_both(results: Any) -> None:
    whole, x = model(), torch.cat(batches()[:2], 1)
    optimizer = torch.optim.SGD(whole.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        whole(x).square().mean().backward()
        optimizer.step()
    assert_found(results[0], "weights", dict(whole.named_parameters()))


def test_one_of_them_compiled_the_cell(results: Any) -> None:
    (compiled,) = results[1].glob("*/cell.so")
    assert compiled.parent.name.startswith("Fresh_")
