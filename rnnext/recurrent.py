"""Layers of cells that users write: `Recurrent`."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, overload

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from rnnext import ops
from rnnext.cell import PARTS, Declaration, declare, width_of, without_noise
from rnnext.checks import checked_values
from rnnext.module_base import check_checkpoint_every
from rnnext.noise import Noise, listed
from rnnext.packing import Lengths
from rnnext.stack import Stack

__all__ = ["Recurrent"]

Device: TypeAlias = torch.device | str | int | None
States: TypeAlias = Tensor | tuple[Tensor, ...]


class Recurrent(Stack, nn.Module):
    """A stack of recurrent layers over a sequence, of a cell that a subclass declares.

        class LightGRU(Recurrent):
            gates = ("z", "n")

            def step(z, n, h):
                z = torch.sigmoid(z)
                return z * h + (1 - z) * torch.relu(n)

    `step` is a pure function of one time step, for all rows at once. Its arguments are found by
    name among what the class declares, in any order; it returns the new states in their order (a
    tensor, or a tuple). The first state is h: the output, and what the recurrent matrix multiplies.

    Class attributes, all optional but `step` and a gate (N rows, H hidden_size):
        gates: names; step takes W_ih x + b_ih + W_hh h + b_hh of each, [N, H].
        apart_gates: names; step takes both parts of the gate n apart: n_x = W_ih x + b_ih and
            n_h = W_hh h + b_hh.
        input_gates: names; step takes W_ih x + b_ih, without a recurrent matrix.
        states: names, each [N, H]; or a dictionary of names and sizes. Default ("h",).
        params: learnt vectors [H] by name: a number or a function of torch.nn.init to begin with,
            None for U(-1/sqrt(H), 1/sqrt(H)), or a `Param` with another size.
        matrices: learnt matrices besides W_ih and W_hh: name and two sizes (out, in). Step may use
            them in torch.nn.functional.linear(value, matrix) and value @ matrix.T.
        sizes: names of sizes besides "hidden_size", required keyword arguments of the layer. A
            size is one of these names, or 1: one value a row. Step may take them, as integers.
        constants: names and default values (float, int, bool, str), keyword arguments of the layer.
        noise: name and `Dropout`, `Bernoulli`, `Normal` or `Uniform`: random values, in eval mode
            their expectation. The layer's seed is drawn from torch's CPU generator at each call.

    Args:
        input_size: C, features of the input.
        hidden_size: H.
        num_layers: L; each layer reads the outputs of the one before.
        bias: whether there are b_ih and b_hh.
        batch_first: input and output are [N, T, ...] instead of [T, N, ...]; states are not.
        dropout: probability of zeroing an element of a layer's output (training only, not after
            the last layer).
        bidirectional: D = 2; outputs of both directions stand side by side.
        heads: blocks of the recurrent matrix: each H/heads units of a gate see as many of h.
        checkpoint_every: as `LSTM`'s: of how many steps training keeps the states before the first
            one alone; backward computes the rest again.
        device, dtype: of the parameters.
        settings: the cell's sizes and constants.

    Attributes:
        weight_ih_l{k} [G*H, C] (later layers [G*H, D*H]), weight_hh_l{k} [R*H, H/heads],
        bias_ih_l{k} [G*H], bias_hh_l{k} [R*H]: all G gates, and the R that are no input gates,
        as declared: gates, apart_gates, input_gates; weight_{name}_l{k} of each matrix,
        {name}_l{k} of each param; the reverse direction's with `_reverse` appended. What has no
        other initial value is drawn from U(-1/sqrt(H), 1/sqrt(H)).

    Raises:
        TypeError, ValueError: at the definition of a class, a declaration that can't be; of a
            layer, an argument out of range or of a wrong type, as torch.nn.LSTM.
        CellError (a ValueError): a step that can't be compiled.

    Example:
        >>> class Leaky(Recurrent):
        ...     gates = ("a",)
        ...     constants = {"leak": 0.1}
        ...
        ...     def step(a, h, leak):
        ...         return (1 - leak) * h + leak * torch.tanh(a)
        >>> layer = Leaky(10, 20, num_layers=2, leak=0.5)
        >>> layer
        Leaky(10, 20, num_layers=2, leak=0.5)
        >>> y, h_n = layer(torch.randn(5, 3, 10), lengths=[5, 2, 4])
        >>> y.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    gates: ClassVar[Sequence[str]] = ()
    apart_gates: ClassVar[Sequence[str]] = ()
    input_gates: ClassVar[Sequence[str]] = ()
    states: ClassVar[Sequence[str] | Mapping[str, str | int]] = ("h",)
    params: ClassVar[Mapping[str, Any]] = {}
    matrices: ClassVar[Mapping[str, tuple[str | int, str | int]]] = {}
    sizes: ClassVar[Sequence[str]] = ()
    constants: ClassVar[Mapping[str, Any]] = {}
    noise: ClassVar[Mapping[str, Any]] = {}
    step: ClassVar[Callable[..., Any] | None] = None

    _default: ClassVar[Declaration]  # with the constants' default values
    # By the constants' values: declarations, and the names of their kernels once asked for.
    _declarations: ClassVar[dict[tuple[Any, ...], Declaration]]
    _kernels: ClassVar[dict[tuple[Any, ...], str | None]]
    _weight_names: Sequence[str] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # A class that changes nothing of a cell has its base's, such as parametrizations make.
        bases: Sequence[Any] = cls.__mro__[1:]
        base = next(b for b in bases if b is Recurrent or "_default" in vars(b))
        if cls._parts() != base._parts():
            cls._declarations, cls._kernels = {}, {}
            cls._default = cls._declare({})
            # Without a first argument for the layer, wherever it is called from.
            cls.step = staticmethod(inspect.unwrap(cls._default.step))

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        heads: int = 1,
        checkpoint_every: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not self._declares():
            raise TypeError(
                f"{name} declares no cell: make a subclass with gates and a step, and layers of it"
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.bidirectional = bidirectional
        self.heads = heads
        _check_dropout(dropout, num_layers)
        self.dropout = float(dropout)
        for argument in ("bias", "batch_first"):
            if not isinstance(value := getattr(self, argument), bool):
                raise TypeError(f"{argument} should be of type bool, got: {type(value).__name__}")
        for argument in ("input_size", "hidden_size", "num_layers", "heads"):
            _check_size(argument, getattr(self, argument))
        check_checkpoint_every(checkpoint_every)
        self.checkpoint_every = checkpoint_every
        for argument, value in self._checked_settings(settings).items():
            setattr(self, argument, value)
        self._declare(self._constants())  # refuses values that the noise or the step can't have
        self._add_parameters(device, dtype)
        self.reset_parameters()

    @property
    def declaration(self) -> Declaration:
        """The cell, with the values that this layer's constants have."""
        return self._declare(self._constants())

    @classmethod
    def _declares(cls) -> bool:
        """Whether the class has a cell, or part of one; a base of such classes may have none."""
        return cls._parts() != Recurrent._parts()

    @classmethod
    def _parts(cls) -> list[int]:
        """What the class declares, as something to compare: the same objects or others."""
        return [id(inspect.getattr_static(cls, part)) for part in ("step", *PARTS)]

    @classmethod
    def _declare(cls, constants: Mapping[str, Any]) -> Declaration:
        """The cell with these values of constants: the same object for the same values."""
        key = _key(constants)
        if key not in cls._declarations:
            from rnnext.codegen.build import check, unused_noise

            cell = declare(
                cls.__name__,
                inspect.getattr_static(cls, "step"),
                **{part: getattr(cls, part) for part in PARTS},
                values=constants,
                attributes=[*dir(cls), *vars(nn.Module())],
            )
            if unused := unused_noise(cell):
                cell = without_noise(cell, unused)
            check(cell)
            # Some are left out of the key, or are integers for floats.
            cls._declarations[key] = cls._declarations.setdefault(_key(cell.constants), cell)
        return cls._declarations[key]

    @classmethod
    def _checked_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the cell's sizes, and of all its constants."""
        name, cell = cls.__name__, cls._default
        for argument in settings:
            if argument not in (*cell.sizes, *cell.constants):
                raise TypeError(
                    f"{name}() got an unexpected keyword argument {argument!r}; its cell's own "
                    f"(sizes and constants) are: {listed((*cell.sizes, *cell.constants))}"
                )
        for argument in cell.sizes:
            if argument not in settings:
                raise TypeError(f"{name}() needs the keyword argument {argument!r}, a size")
            _check_size(argument, settings[argument])
        sizes = {argument: settings[argument] for argument in cell.sizes}
        constants = {k: settings[k] for k in cell.constants if k in settings}
        return {**sizes, **cell.constants, **checked_values(name, cell.constants, constants)}

    def _constants(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._default.constants}

    def _add_parameters(self, device: Device, dtype: torch.dtype | None) -> None:
        cell, directions = self._default, 2 if self.bidirectional else 1
        sizes = cell.size_values(self.hidden_size, self._sizes())
        output = cell.state_widths(sizes)[0]
        if self.heads > 1:
            self._check_heads(cell, output)
        names: list[str] = []
        for layer in range(self.num_layers):
            inputs = self.input_size if layer == 0 else directions * output
            shapes = cell.weight_shapes(self.bias, inputs, sizes, self.heads)
            for suffix in ("", "_reverse")[:directions]:
                for name, shape in zip(cell.weight_names(self.bias), shapes, strict=True):
                    full = f"{name}_l{layer}{suffix}"
                    value = torch.empty(shape, device=device, dtype=dtype)
                    self.register_parameter(full, nn.Parameter(value))
                    names.append(full)
        self._weight_names = names

    def _check_heads(self, cell: Declaration, output: int) -> None:
        if cell.recurrent_gate_count == 0:
            raise ValueError(
                f"got heads={self.heads}, but {cell.name} has no recurrent matrix to divide"
            )
        if output != self.hidden_size or output % self.heads:
            raise ValueError(
                f"got heads={self.heads}: expected a divisor of hidden_size ({self.hidden_size}) "
                f"and of the width of the first state ({output}), which must be the same"
            )

    def reset_parameters(self) -> None:
        """Give the parameters new initial values.

        Of a parametrized weight (`torch.nn.utils.parametrize`), what it is computed from is given
        the right inverse of one; a parametrization without one is taken for the identity.
        """
        for k, full in enumerate(self._weight_names):
            if parametrize.is_parametrized(self, full):
                value = torch.empty_like(getattr(self, full))
                self._fill(value, k)
                _assign_through(self.get_submodule(f"parametrizations.{full}"), value)
                continue
            for name, weight in self._parameters.items():
                # prune and the older weight_norm keep others in its place, named after it.
                replaces = name.startswith(f"{full}_") and name not in self._weight_names
                if weight is not None and (name == full or replaces):
                    self._fill(weight, k)

    def _fill(self, weight: Tensor, k: int) -> None:
        """Give a tensor the initial values of weight number k."""
        cell = self._default
        names = cell.weight_names(self.bias)
        bound, name = 1 / math.sqrt(self.hidden_size), names[k % len(names)]
        param = cell.params.get(name)
        if param is None or param.init is None:
            nn.init.uniform_(weight, -bound, bound)
        elif callable(param.init):
            with torch.no_grad():
                result = param.init(weight)
            if isinstance(result, Tensor) and result is not weight:
                raise TypeError(
                    f"{cell.name}.params[{name!r}] begins with a function that returns a new "
                    "tensor: it must fill the one it is given, in place, as those of torch.nn.init "
                    "do"
                )
        else:
            nn.init.constant_(weight, param.init)

    def generated_code(self) -> str | None:
        """The C++ header that is compiled for the cell; None where nothing can be compiled."""
        from rnnext.codegen.build import compile

        compiled = compile(self.declaration)
        return None if compiled is None else (compiled.folder / "cell.h").read_text("utf-8")

    def extra_repr(self) -> str:
        """The arguments, those with default values left out."""
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "heads": 1,
            "checkpoint_every": None,
            **self._default.constants,
        }
        given = {name: getattr(self, name) for name in (*self._default.sizes, *defaults)}
        shown = [f"{k}={v!r}" for k, v in given.items() if k not in defaults or v != defaults[k]]
        return ", ".join((f"{self.input_size}, {self.hidden_size}", *shown))

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | Sequence[Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
        return_states: Literal[False] = False,
    ) -> tuple[Tensor, States]: ...

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | Sequence[Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
        return_states: Literal[True],
    ) -> tuple[Tensor, States, tuple[Tensor, ...]]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Tensor | Sequence[Tensor] | None = None,
        *,
        masks: Mapping[str, Tensor] | None = None,
        return_states: Literal[False] = False,
    ) -> tuple[PackedSequence, States]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Tensor | Sequence[Tensor] | None = None,
        *,
        masks: Mapping[str, Tensor] | None = None,
        return_states: Literal[True],
    ) -> tuple[PackedSequence, States, tuple[PackedSequence, ...]]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | Sequence[Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
        return_states: bool = False,
    ) -> tuple[Any, ...]:
        """Run the stack over a sequence: as `LSTM.forward`, with the states of the cell.

        Args:
            input: [T, N, C] ([N, T, C] if batch_first), unbatched [T, C], or a PackedSequence.
            hx: initial states, each [L*D, N, width], for unbatched input without N: a tensor if the
                cell has one state, else a tuple; default zeros.
            lengths: with padded 3-D input, the length of each row: N integers in 1..T, in any
                order, a tensor or a list. No work is spent on padding, and none of it is read.
            reset: bool [T, N] (as input: [N, T] if batch_first, unbatched [T]): where it is true,
                a sequence begins anew before that step, from zeros. The reverse direction is cut in
                the same places.
            masks: the noise of each layer and direction, and a factor of each recurrent matrix,
                instead of drawn ones and in eval mode too: of a name in `noise` [L*D, T, N, width]
                (as input: [L*D, N, T, width] if batch_first, unbatched [L*D, T, width], packed
                [L*D, rows, width]), with per="sequence" [L*D, N, width]; "weight_hh"
                [L*D, R*H, H/heads]. Of the noise all must be given, or nothing. They have no
                gradient.
            return_states: whether the states of the last layer besides the first, whose sequence
                is the output, are wanted after every step too.

        Returns:
            output, states: outputs of the last layer [T, N, D*H], H being the width of the first
            state, in the form of the input (with lengths, zeros at padding); and the states after
            each row's own last step, a tensor or a tuple as hx. With return_states a third, a tuple
            of the sequences of the other states, in the form of output.

        Raises:
            ValueError: input of a wrong number of dimensions or dtype; lengths out of range, of a
                wrong shape, or with input that is unbatched or packed; reset of a wrong shape, or
                with input that is packed; masks that are unknown, missing or of a wrong shape.
            TypeError: lengths that are not integers; reset that is not bool; hx that is not as the
                cell's states.
            RuntimeError: T = 0; sizes of input or states that do not fit; states of another dtype
                or device.
        """
        output, states, sequences = self._run(
            input, self._given_states(hx), lengths, reset, masks, return_states
        )
        last = states[0] if len(states) == 1 else tuple(states)
        return (output, last, sequences) if return_states else (output, last)

    if TYPE_CHECKING:
        __call__ = forward

    def _given_states(self, hx: Tensor | Sequence[Tensor] | None) -> Sequence[Tensor]:
        names = tuple(self._default.states)
        if hx is None:
            return ()
        if len(names) == 1:
            if not isinstance(hx, Tensor):
                raise TypeError(
                    f"{self._kind()}: argument 'hx' must be a Tensor, the state {names[0]}, "
                    f"not {type(hx).__name__}"
                )
            return (hx,)
        expected = f"a tuple of {len(names)} Tensors ({', '.join(names)})"
        if not isinstance(hx, (tuple, list)) or not all(isinstance(h, Tensor) for h in hx):
            raise TypeError(
                f"{self._kind()}: argument 'hx' must be {expected}, not {type(hx).__name__}"
            )
        if len(hx) != len(names):
            raise RuntimeError(f"{self._kind()} expects hx to be {expected}, but got {len(hx)}")
        return hx

    def _kind(self) -> str:
        return type(self).__name__

    def _names(self) -> Sequence[str]:
        return self._weight_names

    def _sizes(self) -> list[int]:
        return [getattr(self, name) for name in self._default.sizes]

    def _states(self) -> dict[str, int]:
        cell = self._default
        sizes = cell.size_values(self.hidden_size, self._sizes())
        return dict(zip(cell.states, cell.state_widths(sizes), strict=True))

    def _noise(self) -> dict[str, tuple[Noise, int]]:
        sizes = self._default.size_values(self.hidden_size, self._sizes())
        noise = self.declaration.noise
        return {name: (one, width_of(one.size, sizes)) for name, one in noise.items()}

    def _draws(self) -> bool:
        return super()._draws() or len(self.declaration.noise) > 0

    def _cell_name(self) -> str | None:
        """The name of the compiled cell, which the first call makes; None without a compiler."""
        constants = {name: _known(value) for name, value in self._constants().items()}
        return _kernel_name(type(self), _key(constants))

    def _call_op(
        self, x: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], **options: Any
    ) -> list[Tensor]:
        cell = self._cell_name() or self.declaration
        return ops.rnn(cell, x, hx, weights, sizes=self._sizes(), **options)


def _assign_through(parametrizations: Any, value: Any) -> None:
    with torch.no_grad():
        for step in reversed(parametrizations):
            if hasattr(step, "right_inverse"):
                value = step.right_inverse(value)
        parts = (value,) if isinstance(value, Tensor) else value
        for original, part in zip(parametrizations.parameters(recurse=False), parts, strict=True):
            original.copy_(part)


def _key(constants: Mapping[str, Any]) -> tuple[Any, ...]:
    """Constants as a key: 1, 1.0 and True differ."""
    return tuple((name, type(value), value) for name, value in constants.items())


def _known(constant: Any) -> Any:
    """A constant; torch.compile, which may take a float for a variable, shall know its value."""
    if torch.compiler.is_dynamo_compiling() and isinstance(constant, float):
        from torch.fx.experimental.symbolic_shapes import guard_scalar

        return guard_scalar(constant)
    return constant


def _kernel_name(layer: type[Recurrent], key: tuple[Any, ...]) -> str | None:
    if key not in layer._kernels:
        from rnnext.codegen.build import kernel

        cell = layer._declare({name: value for name, _, value in key})
        layer._kernels[key] = kernel(cell)
    return layer._kernels[key]


# torch.compile takes the name as it is, and does not look into the compiling of cells. What
# torch.compiler.assume_constant_result does, without its import of the compiler (a second).
_kernel_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _check_dropout(dropout: Any, num_layers: Any) -> None:
    if not isinstance(dropout, Number) or not 0 <= dropout <= 1 or isinstance(dropout, bool):  # type: ignore[operator]
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an "
            "element being zeroed"
        )
    if dropout > 0 and num_layers == 1:  # type: ignore[operator]
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout "
            f"expects num_layers greater than 1, but got dropout={dropout} and "
            f"num_layers={num_layers}",
            stacklevel=3,
        )


def _check_size(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{name} must be greater than zero")
