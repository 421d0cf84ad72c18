"""Random cells: steps composed of operations that are smooth, or smooth but for single points."""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import rnnext

UNITS = [
    *("torch.tanh({x})", "torch.sigmoid({x})", "torch.sin({x})", "torch.cos({x})", "F.gelu({x})"),
    *("torch.exp(-{x} * {x})", "torch.expm1(0.1 * {x})", "torch.log1p({x} * {x})", "F.silu({x})"),
    *("torch.sqrt(1 + {x} ** 2)", "torch.rsqrt(2 + {x}.square())", "F.softplus({x})", "1 - {x}"),
    *("torch.relu({x})", "{x}.abs()", "torch.erf({x})", "F.elu({x})", "-{x}", "0.3 * {x}"),
    *("torch.clamp({x}, -1.3, 0.7)", "{x}.detach()", "{x}.pow(3)", "2 / (3 + {x}.abs())"),
    *("{x} + {y}", "{x} - {y}", "{x} * {y}", "{x} / (1 + {y} * {y})", "torch.logaddexp({x}, {y})"),
    *("torch.maximum({x}, {y})", "torch.minimum({x}, {y})", "torch.lerp({x}, {y}, 0.3)"),
    *("torch.where({x} > {y}, {x}, 0.1 * {y})", "torch.exp(-{x}.abs()) ** {y}.abs()"),
    *("torch.addcmul({x}, {y}, {z}, value=0.5)", "torch.lerp({x}, {y}, torch.sigmoid({z}))"),
    *("torch.where({x} * {y} > 0.1, {z}, 0.4)", "{x} * {y} + {z}", "({x} + {y}) * {z}"),
]
ROWS = [
    *("{x}.mean(-1, keepdim=True)", "{x}.mean(-1)[:, None]", "{x}.var(-1, keepdim=True)"),
    *("torch.tanh({x}).sum(-1, keepdim=True)", "torch.linalg.norm({x}, dim=-1, keepdim=True)"),
]
NORMS = ["F.layer_norm({x}, {x}.shape[-1:])", "F.rms_norm({x}, {x}.shape[-1:], eps=1e-3)"]


def layer_norm(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)


class Step(NamedTuple):
    """A random cell."""

    source: str
    parts: dict[str, Any]

    def function(self, by_hand: bool = False) -> Callable[..., Any]:
        """The step; by hand: without layer_norm, which is not right in torch's tangents."""
        names: dict[str, Any] = {"torch": torch, "F": F, "layer_norm": layer_norm}
        exec(self.source.replace("F.layer_norm", "layer_norm") if by_hand else self.source, names)
        return names["step"]

    def __repr__(self) -> str:
        return f"{self.parts}\n{self.source}"


def random_step(choose: Callable[[Sequence[Any]], Any]) -> Step:
    """A step of which `choose` decides everything."""
    gates, apart, given = choose([(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1), (2, 1, 1)])
    parts: dict[str, Any] = {
        "gates": tuple("ab"[:gates]),
        "apart_gates": tuple("n"[:apart]),
        "input_gates": tuple("u"[:given]),
        "states": tuple("hcd"[: choose([1, 1, 1, 2, 3])]),
        "params": dict.fromkeys("pq"[: choose([0, 1, 2])]),
        "noise": dict.fromkeys("m"[: choose([0, 0, 0, 1])], rnnext.Bernoulli(0.3)),
        "matrices": dict.fromkeys("W"[: choose([0, 0, 1])], ("hidden_size", "hidden_size")),
    }
    rows = [*parts["gates"], *parts["input_gates"], *(f"n_{x}" for x in "xh" if apart)]
    rows += [*parts["states"], *parts["noise"]]  # names of values (N, hidden_size)
    broadcast = [*parts["params"]]  # of values that become so together with others
    arguments = [*rows, *parts["params"], *parts["matrices"]]
    lines: list[str] = []
    for number in range(choose([1, 2, 3, 4])):
        forms = choose([UNITS, UNITS, UNITS, UNITS, ROWS, NORMS])
        among = [*rows, *broadcast] if forms is UNITS else rows
        made = choose(forms).format(**{letter: choose(among) for letter in "xyz"})
        if forms is UNITS:
            made += f" + 0.1 * {choose(rows)}"
        lines.append(f"v{number} = {made}")
        (broadcast if forms is ROWS else rows).append(f"v{number}")
    for matrix in parts["matrices"]:
        lines.append(f"w = F.linear({choose(rows)}, {matrix})")
        rows.append("w")
    new = [
        f"torch.tanh({rows[-1 - k]} + {choose(rows)} + {choose([*rows, *broadcast])})"
        for k in range(len(parts["states"]))
    ]
    body = "".join(f"    {line}\n" for line in [*lines, f"return {', '.join(new)}"])
    return Step(f"def step({', '.join(arguments)}):\n{body}", parts)


def seeded_step(seed: int) -> Step:
    """The same one for the same seed."""
    return random_step(random.Random(seed).choice)
