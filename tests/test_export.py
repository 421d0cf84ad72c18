"""torch.export and AOTInductor: programs for all sizes, run by a process that has no model."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export, load, save
from written_cells import ZOO

import rnnext
from rnnext.codegen import build

C, H = 6, 5
SIZES = ((9, 4), (3, 11), (1, 1), (20, 2))  # T, N


class Padded(nn.Module):
    """A layer of sequences with lengths."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        return self.layer(x, lengths=lengths)


class Several(nn.Module):
    """Layers of every kind in one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = rnnext.LSTM(C, H, 2, bidirectional=True)
        self.second = ZOO["Leaky"](2 * H, H, batch_first=True, leak=0.3)
        self.third = ZOO["Everything"](H, H, out_size=4, key_size=3)
        self.cell = rnnext.GRUCell(4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y, (h, _) = self.first(x, lengths=lengths)
        y, _ = self.second(y.transpose(0, 1), lengths=lengths.flip(0))
        y, _ = self.third(y.transpose(0, 1) * h.mean())
        return self.cell(y.sum(0))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: rnnext.LSTM(C, H, 2, bidirectional=True),
    "LSTM_PROJ": lambda: rnnext.LSTM(C, H, proj_size=2),
    "RNN": lambda: rnnext.RNN(C, H),
    "SLSTM": lambda: ZOO["SLSTM"](C, H),
    "GRU with lengths": lambda: Padded(rnnext.GRU(C, H, bidirectional=True)),
    "Spread with lengths": lambda: Padded(ZOO["Spread"](C, H)),
    "several": Several,
    "LSTMCell": lambda: rnnext.LSTMCell(C, H),
    "RNNCell": lambda: rnnext.RNNCell(C, H),
}


def example(model: nn.Module, t: int, n: int) -> tuple[Tensor, ...]:
    if isinstance(model, nn.RNNCellBase):
        return (torch.randn(n, C),)
    x = torch.randn(t, n, C)
    if isinstance(model, (Padded, Several)):
        return x, torch.randint(1, t + 1, (n,))
    return (x,)


def exported(model: nn.Module, strict: bool = False) -> torch.export.ExportedProgram:
    dims = {1: [{0: "N"}], 2: [{0: "T", 1: "N"}, {0: "N"}]}
    arguments = example(model, 7, 4)
    of_each = dims[1 if isinstance(model, nn.RNNCellBase) else 2][: len(arguments)]
    named = {name: Dim(name, min=1) for name in ("T", "N")}
    shapes = tuple({k: named[name] for k, name in dim.items()} for dim in of_each)
    return export(model, arguments, dynamic_shapes=shapes, strict=strict)


def leaves(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for part in result for t in leaves(part)]


def same(result: Any, expected: Any) -> None:
    for a, b in zip(leaves(result), leaves(expected), strict=True):
        torch.testing.assert_close(a, b)


RUN_ELSEWHERE = """
import sys
import torch
import rnnext
from pathlib import Path

for file in sorted(Path(sys.argv[1]).glob("*.pt2")):
    if file.name.startswith("aoti"):
        model = torch._inductor.aoti_load_package(str(file))
    else:
        model = torch.export.load(file).module()
    with torch.no_grad():
        results = [model(*a) for a in torch.load(file.with_suffix(".inputs"))]
    torch.save(results, file.with_suffix(".outputs"))
"""


def run_elsewhere(folder: Path, examples: dict[str, list[tuple[Tensor, ...]]]) -> dict[str, Any]:
    """The results of the programs in a folder, from a process that only imports rnnext."""
    for name, arguments in examples.items():
        torch.save(arguments, folder / f"{name}.inputs")
    subprocess.run([sys.executable, "-W", "ignore", "-c", RUN_ELSEWHERE, str(folder)], check=True)
    return {name: torch.load(folder / f"{name}.outputs") for name in examples}


def test_saved_programs_run_in_another_process_at_all_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = {name: make().eval() for name, make in MODELS.items()}
    examples = {name: [example(m, t, n) for t, n in SIZES] for name, m in models.items()}
    for name, model in models.items():
        save(exported(model), tmp_path / f"{name}.pt2")
    results = run_elsewhere(tmp_path, examples)
    for name, model in models.items():
        for result, arguments in zip(results[name], examples[name], strict=True):
            same(result, model(*arguments))


@pytest.mark.parametrize("name", ["LSTM", "several", "LSTMCell"])
def test_strict_export(name: str) -> None:
    model = MODELS[name]().eval()
    program = exported(model, strict=True).module()
    for t, n in SIZES:
        arguments = example(model, t, n)
        same(program(*arguments), model(*arguments))


def test_the_graph_calls_the_op_once_a_layer() -> None:
    graph = exported(Several().eval()).graph
    targets = [str(n.target) for n in graph.nodes if "rnnext" in str(n.target)]
    packing, rnn = "rnnext.packing.default", "rnnext.rnn.default"
    assert targets == [packing, rnn, packing, rnn, rnn, rnn]


def test_an_exported_program_can_be_trained(tmp_path: Path) -> None:
    model = Several()
    save(exported(model), tmp_path / "model.pt2")
    program = load(tmp_path / "model.pt2").module()
    arguments = example(model, 5, 3)
    results = []
    for module in (program, model):
        torch.manual_seed(1)  # of the noise in one of the cells
        loss = module(*arguments).sin().sum()
        results.append(torch.autograd.grad(loss, list(module.parameters())))
    same(*results)


def test_cells_are_found_by_name_in_the_cache_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = ZOO["Leaky"](C, H)
    name = build.kernel(layer.declaration)
    assert name is not None
    assert build.load_cached(name)
    monkeypatch.setenv("RNNEXT_CACHE", str(tmp_path / "elsewhere"))
    assert not build.load_cached(name)
    monkeypatch.setenv("RNNEXT_CACHE", str(tmp_path))
    assert not build.load_cached(f"elsewhere/{name}")
    with pytest.raises(ValueError, match=r"no cell is called 'Leaky_0'.*export its program with"):
        torch.ops.rnnext.cell_shape("Leaky_0", [1])


def test_aot_inductor(tmp_path: Path, inductor_cache: None) -> None:
    torch.manual_seed(0)
    model = Several().eval()
    with torch.no_grad():
        program = exported(model)
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(tmp_path / "aoti.pt2"),
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # faster to compile
        )
    examples = [example(model, t, n) for t, n in SIZES]
    (results,) = run_elsewhere(tmp_path, {"aoti": examples}).values()
    for result, arguments in zip(results, examples, strict=True):
        same(result, model(*arguments))
