"""The way to ONNX: torch.nn's layers again, by unswap, and torch's exporter."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rnnext

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

C, H = 6, 5


class Model(nn.Module):
    """Two layers in both directions, and what is made of them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(rnnext, kind)(C, H, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * H, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        # The exporter on torch.export unrolls or fixes the steps of torch.nn's layers.
        ({"dynamo": True, "dynamic_shapes": ({0: Dim("n")},), "verbose": False}, [(4, 7), (9, 7)]),
        (
            {"dynamo": False, "input_names": ["x"], "dynamic_axes": {"x": {0: "n", 1: "t"}}},
            [(4, 7), (9, 12), (1, 3)],
        ),
    ],
    ids=["dynamo", "torchscript"],
)
@pytest.mark.filterwarnings("ignore")  # of what is deprecated in the exporters
def test_a_model_in_onnxruntime(
    kind: str, options: dict[str, Any], sizes: list[tuple[int, int]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Model(kind).eval()
    theirs = rnnext.unswap(copy.deepcopy(model))
    assert type(theirs.rnn) is getattr(nn, kind)
    assert type(model.rnn) is getattr(rnnext, kind)
    file = str(tmp_path / "model.onnx")
    torch.onnx.export(theirs, (torch.randn(4, 7, C),), file, **options)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for n, t in sizes:
        x = torch.randn(n, t, C)
        (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(result), model(x), rtol=1e-4, atol=1e-5)
