"""The examples in the docstrings run and print what they say."""

import doctest
import sys
from importlib import import_module
from types import ModuleType

import pytest
import torch

import rnnext
from rnnext import cells, modules, ops, reference

FAMILIES = [
    import_module(f"rnnext.cells.{name}")
    for name in (*dict.fromkeys(cells.CELLS.values()), "dropconnect")
]


@pytest.mark.parametrize(
    "module",
    # Of swap and plan, the function stands in front of the module in rnnext.
    [
        *(rnnext, cells, modules, ops, reference),
        *(sys.modules[f"rnnext.{name}"] for name in ("plan", "swap")),
        *FAMILIES,
    ],
    ids=lambda module: module.__name__,
)
def test_examples(module: ModuleType) -> None:
    names = {"torch": torch, "nn": torch.nn, "rnnext": rnnext}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
