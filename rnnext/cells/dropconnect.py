"""DropConnect: dropout of the recurrent weights, for any layer."""

from typing import TypeVar

from torch import nn

from rnnext.stack import Stack

__all__ = ["drop_connect"]

L = TypeVar("L", bound=nn.Module)


def drop_connect(layer: L, p: float = 0.5) -> L:
    """Let a layer drop elements of its recurrent weights in training.

    At each call every `weight_hh_l{k}` is multiplied by a mask, 0 with probability p, else
    1 / (1 - p): one mask for all sequences and all steps, drawn by a seed from torch's generator,
    the same for any number of threads. In eval mode the weights are as they are, and parameters and
    state_dict are the layer's own always.

    Wan et al. 2013; on recurrent weights Merity, Keskar and Socher 2017 (arXiv:1708.02182).

    Args:
        layer: an `rnnext.LSTM`, `GRU` or `RNN`, or a `Recurrent` with a recurrent matrix.
        p: the probability of dropping an element; 0 turns it off again.

    Returns:
        The layer itself.

    Raises:
        TypeError: it is no such layer.
        ValueError: it has no recurrent matrix, or p is no probability.

    Example:
        >>> import rnnext
        >>> lstm = drop_connect(rnnext.LSTM(10, 20), 0.5)
    """
    if not isinstance(layer, Stack):
        raise TypeError(
            f"drop_connect takes a layer of rnnext, got {type(layer).__name__}; a model with "
            "layers of torch.nn is first given to rnnext.swap"
        )
    if not any(name.startswith("weight_hh") for name in layer._names()):
        raise ValueError(f"drop_connect: {layer._kind()} has no recurrent matrix to drop from")
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise ValueError(f"drop_connect: got p={p!r}, expected a probability, 0 to 1")
    layer._weight_dropout = float(p)
    return layer
