"""Compare a program with its step run by torch: values and every gradient, in float64."""

import functools

import torch
import torch.autograd.forward_ad as forward_mode

from rnnext.codegen.ir import evaluate
from rnnext.codegen.record import inputs, record
from rnnext.codegen.trace import lower

N, HIDDEN = 3, 5
GATES = ("gate", "gate_x", "gate_h")


@functools.cache
def program_of(cell, streams):
    return lower(record(cell), streams)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def assert_close(actual, expected, tolerance, name):
    """The same up to rounding, or an error that says the result's name."""
    torch.testing.assert_close(
        actual,
        expected,
        rtol=tolerance,
        atol=tolerance,
        equal_nan=True,
        msg=lambda text: f"{name}: {text}",
    )


def _row(n):
    return slice(n, n + 1)


class Case:
    """A cell with values for all that it takes; with two streams, tangents of what is smooth."""

    def __init__(self, cell, streams=1, values=random):
        self.cell, self.streams, self.program = cell, streams, program_of(cell, streams)
        names = ("hidden_size", *cell.sizes)
        self.sizes = {1: 1, **{name: HIDDEN + i for i, name in enumerate(names)}}
        self.inputs = [given for given in inputs(cell) if given.op not in ("size", "matrix")]
        self.smooth = [given for given in self.inputs if given.op != "noise"]
        gates = len({given.index for given in self.inputs if given.op in GATES})
        self.counts = {"state": len(cell.states), "param": len(cell.params)}
        self.counts |= dict.fromkeys(GATES, gates)
        self.primal = {
            given.name: values(*[N] * (given.op != "param"), self.sizes[given.width])
            for given in self.inputs
        }
        self.tangent = {given.name: random(*self.primal[given.name].shape) for given in self.smooth}
        shapes = [(self.sizes[to], self.sizes[of]) for to, of in cell.matrices.values()]
        self.matrices = [[random(*shape) for shape in shapes] for _ in range(streams)]
        self.given = {}  # sums over the batch that are not to be added up
        self.dnext = [random(N, self.sizes[s]) for s in [*cell.states.values()] * streams]

    def check(self, rtol=1e-12):
        """Compare all results."""
        (new, gradients), values = self.by_torch(), self.by_program()
        names = [(f"new {name}", s) for s in range(self.streams) for name in self.cell.states]
        found = {name: values[node] for name, node in zip(names, self.program.next, strict=True)}
        found |= self.gradients(values)
        expected = dict(zip(names, new, strict=True)) | gradients
        for name, value in expected.items():
            # Double: of booleans eager results are float32, whatever the layer's are.
            assert_close(found[name].expand(value.shape).double(), value.double(), rtol, name)

    def by_torch(self):
        """New states and gradients; a row at a time, so that params have a gradient for each."""
        whole = self.program.has_batch_sums
        rows = [self.rows(part) for part in ([slice(N)] if whole else map(_row, range(N)))]
        new = [torch.cat(parts) for parts in zip(*[new for new, _ in rows], strict=True)]
        return new, {name: torch.cat([row[name] for _, row in rows]) for name in rows[0][1]}

    def rows(self, rows):
        def part(given, values):
            value = values[given.name]
            return value.clone() if given.op == "param" else value[rows].clone()

        primal = {given.name: part(given, self.primal) for given in self.inputs}
        tangent = {given.name: part(given, self.tangent) for given in self.smooth}
        streams = (primal, tangent)[: self.streams]
        wanted = {(g.name, s): streams[s][g.name] for s in range(self.streams) for g in self.smooth}
        for value in wanted.values():
            value.requires_grad_()
        if self.streams == 1:
            new = self.run(primal, self.matrices[0])
        else:
            with forward_mode.dual_level():
                dual = {
                    name: forward_mode.make_dual(primal[name], t) for name, t in tangent.items()
                }
                pairs = zip(*self.matrices, strict=True)
                matrices = [forward_mode.make_dual(*pair) for pair in pairs]
                new = [forward_mode.unpack_dual(x) for x in self.run(primal | dual, matrices)]
            tangents = [torch.zeros_like(x.primal) if x.tangent is None else x.tangent for x in new]
            new = [*(x.primal for x in new), *tangents]
        flowing = [(x, d[rows]) for x, d in zip(new, self.dnext, strict=True) if x.requires_grad]
        found = torch.autograd.grad(
            [x for x, _ in flowing],
            list(wanted.values()),
            [d for _, d in flowing],
            materialize_grads=True,
            allow_unused=True,
        )
        gradients = {
            name: torch.atleast_2d(gradient) for name, gradient in zip(wanted, found, strict=True)
        }
        return [x.detach() for x in new], gradients

    def run(self, values, matrices):
        named = zip(self.cell.matrices, matrices, strict=True)
        return self.cell.call({**self.cell.constants, **self.sizes, **values, **dict(named)})

    def by_program(self):
        """The values of the program's nodes, with the engine's part, the products."""
        leaves = {(given.op, given.index): self.primal[given.name] for given in self.inputs}
        if self.streams == 2:
            for given in self.smooth:
                index = given.index + self.counts[given.op]
                leaves[given.op, index] = self.tangent[given.name]
        names = ("hidden_size", *self.cell.sizes)
        leaves |= {
            ("size", i): torch.tensor(float(self.sizes[name]), dtype=torch.float64)
            for i, name in enumerate(names)
        }
        leaves["batch", 0] = torch.tensor(float(N), dtype=torch.float64)
        leaves |= {("dnext", k): value for k, value in enumerate(self.dnext)} | self.given
        values = {}

        def compute(node, args):
            if node.op == "doperand":
                count = len(self.program.products)
                evaluate(self.program.dproduct[node.index :: count], leaves, compute, values)
                return self.doperand(node.index, values)
            use = self.program.products[node.index % len(self.program.products)]
            args = [arg.expand(N, self.sizes[use.source_width]) for arg in reversed(args)]
            matrices = [matrices[use.matrix] for matrices in self.matrices]
            return sum(arg @ matrix.T for arg, matrix in zip(args, matrices, strict=False))

        return evaluate(self.program.results(), leaves, compute, values)

    def doperand(self, index, values):
        """M^T G + dM^T Gt for the operand, M^T Gt for its tangent."""
        count = len(self.program.products)
        use = self.program.products[index % count]
        made = [
            values[node].expand(N, self.sizes[use.to])
            for node in self.program.dproduct[index::count]
        ]
        matrices = [matrices[use.matrix] for matrices in self.matrices]
        return sum(d @ matrix for d, matrix in zip(made, matrices, strict=False))

    def gradients(self, values):
        """Those of the program, and what the engine adds: rows' shares, if the step is of the whole
        batch, and where a product's operand is a state.
        """
        program, found = self.program, {}
        tables = {
            "gate": program.da,
            "gate_x": program.dx,
            "gate_h": program.dr,
            "state": program.dstate,
            "param": program.dparam,
        }
        for stream in range(self.streams):
            for given in self.smooth:
                index = given.index + stream * self.counts[given.op]
                gradient = values[tables[given.op][index]]
                gradient = gradient.expand(N, self.sizes[given.width])
                shared = given.op == "param" and program.has_batch_sums
                found[given.name, stream] = gradient.sum(0, keepdim=True) if shared else gradient
        states = list(self.cell.states)
        for p, use in enumerate(program.products):
            for stream, operand in enumerate(use.operands):
                if operand.op == "state":
                    name = (states[operand.index % len(states)], stream)
                    p_of_stream = p + stream * len(program.products)
                    found[name] = found[name] + self.doperand(p_of_stream, values)
        return found
