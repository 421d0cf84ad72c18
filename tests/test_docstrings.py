"""The examples in the docstrings run and print what they say."""

import doctest
import sys
from types import ModuleType

import pytest
import torch

import rnnext
from rnnext import modules, ops, reference


@pytest.mark.parametrize(
    "module",
    # rnnext.swap the function stands in front of rnnext.swap the module.
    [rnnext, modules, ops, reference, sys.modules["rnnext.swap"]],
    ids=lambda module: module.__name__,
)
def test_examples(module: ModuleType) -> None:
    names = {"torch": torch, "nn": torch.nn}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
