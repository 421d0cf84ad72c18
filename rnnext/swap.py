"""Turn torch.nn's recurrent modules into rnnext's in place, and back."""

import warnings
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from rnnext import modules

__all__ = ["swap", "unswap"]

M = TypeVar("M", bound=nn.Module)
Table = Mapping[type[nn.Module], type[nn.Module]]

_OURS: Table = {
    nn.LSTM: modules.LSTM,
    nn.GRU: modules.GRU,
    nn.RNN: modules.RNN,
    nn.LSTMCell: modules.LSTMCell,
    nn.GRUCell: modules.GRUCell,
    nn.RNNCell: modules.RNNCell,
}
_THEIRS: Table = {ours: theirs for theirs, ours in _OURS.items()}
_NAMES = {theirs.__name__ for theirs in _OURS}


def swap(model: M) -> M:
    """Turn every torch.nn LSTM, GRU, RNN and cell of them in a model into rnnext's, in place.

    Only the class of each module changes: it stays the same object with the same Parameters, so
    optimizers, hooks, parametrizations, train/eval mode, dtype, device and shared weights are what
    they were. The model itself may be such a module. Swapping twice does nothing more.

    What can't be swapped is named in one warning, with the reason, and left alone: a subclass (its
    own methods would be lost), a module whose forward was replaced, and TorchScript's and quantized
    ones.

    Args:
        model: any module.

    Returns:
        The model.

    Raises:
        TypeError: model is no torch.nn.Module.

    Example:
        >>> swap(nn.Sequential(nn.LSTM(3, 4))).get_submodule("0").__class__.__module__
        'rnnext.modules'
    """
    return _exchange(model, _OURS, "swap")


def unswap(model: M) -> M:
    """Turn every rnnext layer and cell in a model into torch.nn's, in place: `swap`'s way back.

    Also for models that were built of rnnext's layers. Arguments, errors and warning as `swap`'s.

    Example:
        >>> unswap(swap(nn.GRU(3, 4))).__class__ is nn.GRU
        True
    """
    return _exchange(model, _THEIRS, "unswap")


def _exchange(model: M, table: Table, verb: str) -> M:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{verb} expects a torch.nn.Module, but got {type(model).__name__}")
    kept = []
    for path, module in model.named_modules():
        reason = _obstacle(module, table)
        if reason:
            kept.append(f"  {path or 'the model itself'}: {reason}")
        elif (kind := _kind(module)) in table:
            module.__class__ = _with_parametrizations(table[kind], module)
            if isinstance(module, nn.RNNBase):
                # nn's forward reads this list of the weights, which ours does not keep up to date.
                module._init_flat_weights()
    if kept:
        warnings.warn(f"{verb} left these modules alone:\n" + "\n".join(kept), stacklevel=3)
    return model


def _kind(module: nn.Module) -> type[nn.Module]:
    """Its class; of a parametrized module that of which it was: torch made it one of its own."""
    kind = type(module)
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind


def _with_parametrizations(kind: type[nn.Module], module: nn.Module) -> type[nn.Module]:
    """The class for a module that is to be of a kind: its own if it is parametrized, too."""
    if not parametrize.is_parametrized(module):
        return kind
    own = vars(type(module))  # a property for each parametrized weight, and how to copy it
    members = {key: own[key] for key in own if key not in ("__dict__", "__weakref__", "__doc__")}
    return type(f"Parametrized{kind.__name__}", (kind,), members)


def _obstacle(module: nn.Module, table: Table) -> str | None:
    """Why a recurrent module can't be exchanged; None if it can, or if it is none of these."""
    kind = _kind(module)
    if isinstance(module, torch.jit.ScriptModule):
        name = getattr(module, "original_name", "")
        return f"a TorchScript {name}" if name in _NAMES else None
    if kind.__module__.startswith(("torch.ao.nn.quant", "torch.nn.quant")):
        return f"a quantized {kind.__name__}" if kind.__name__ in _NAMES else None
    if not isinstance(module, tuple(table)):
        return None
    if kind not in table:
        base = next(base for base in kind.__mro__ if base in table)
        return f"{kind.__qualname__} is a subclass of {base.__name__}, whose methods would be lost"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    return None
