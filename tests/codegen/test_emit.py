"""Generated C++ headers: compiled, run on plain loops, and compared with the program's meaning."""

import ctypes
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest
import torch
from batch_cells import CELLS as BATCH_CELLS
from eager import program_of
from sample_cells import CELLS as SAMPLES

from rnnext.cell import declare
from rnnext.codegen import emit, ir, plan, trace
from rnnext.codegen.record import record

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
SIZES = {"hidden_size": 5, "proj_size": 3, "proj": 4}
ROWS = 4
TWICE = ("GRU", "MGU", "LayerNormLSTM", "Detached")
CELLS = {**SAMPLES, **{f"batch_{name}": cell for name, cell in BATCH_CELLS.items()}}
CASES = [(name, 1) for name in CELLS]
CASES += [(name, 2) for name in CELLS if name in TWICE or name not in SAMPLES]


@pytest.fixture(scope="module")
def programs():
    return {(name, streams): program_of(CELLS[name], streams) for name, streams in CASES}


@pytest.fixture(scope="module")
def library(programs, tmp_path_factory):
    """All cells in one library."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler (c++, g++ or clang++) on PATH")
    folder = tmp_path_factory.mktemp("cells")
    source = ['#include "units.h"']
    for (name, streams), program in programs.items():
        inside = f"{name}_{streams}"  # two programs of a cell have structs of the same name
        header = emit.header(program, inside)
        (folder / f"{inside}.h").write_text(header, encoding="utf-8")
        struct = f"{inside}::{emit.struct_name(program)}"
        source += [
            "#undef RNNEXT_ISA",
            f"#define RNNEXT_ISA mock::{inside}",
            f'#include "{inside}.h"',
            f"RUN({inside}, {struct})",
        ]
    (folder / "cells.cpp").write_text("\n".join(source) + "\n", encoding="utf-8")
    flags = ["-std=c++20", "-O0", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    flags.append(
        "-Wno-missing-field-initializers"
    )  # these have defaults; GCC 12 warns all the same
    paths = [f"-I{path}" for path in (HERE / "mock", CSRC, folder)]
    command = [compiler, *flags, *paths, "cells.cpp", "-o", "cells.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(folder / "cells.so")


EXCHANGE = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_double), ctypes.c_int
)


def leaves_of(program, generator):
    """Random values of all leaves of a program, and its matrices."""
    cell, sizes = program.declaration, {**SIZES, 1: 1}

    def draw(rows, width):
        return torch.randn(rows, sizes[width], dtype=torch.float64, generator=generator)

    gates = len(cell.gates) + len(cell.apart_gates) + len(cell.input_gates)
    leaves = {}
    for g in range(program.streams * gates):
        for op in ("gate", "gate_x", "gate_h"):
            leaves[op, g] = draw(ROWS, "hidden_size")
    for k, width in enumerate([*cell.states.values()] * program.streams):
        leaves["state", k], leaves["dnext", k] = draw(ROWS, width), draw(ROWS, width)
    for k, param in enumerate([*cell.params.values()] * program.streams):
        leaves["param", k] = draw(1, param.size).expand(ROWS, -1)
    for k, noise in enumerate(cell.noise.values()):
        leaves["noise", k] = draw(ROWS, noise.size)
    for k, name in enumerate(["hidden_size", *cell.sizes]):
        leaves["size", k] = torch.tensor(float(SIZES[name]), dtype=torch.float64)
    leaves["batch", 0] = torch.tensor(float(ROWS), dtype=torch.float64)
    matrices = [
        torch.randn(sizes[to], sizes[of], dtype=torch.float64, generator=generator)
        for to, of in [*cell.matrices.values()] * program.streams
    ]
    return leaves, matrices


def run(library, program, name, leaves, matrices):
    """Results of the compiled cell, by name."""
    results = {}

    @EXCHANGE
    def exchange(key, count, data, out):
        array = torch.frombuffer(
            (ctypes.c_double * count).from_address(ctypes.addressof(data.contents)),
            dtype=torch.float64,
        )
        op, index = key.decode().split()
        if out:
            results[op, int(index)] = array.clone()
        elif op == "matrix":
            array.copy_(matrices[int(index)].flatten())
        elif (op, int(index)) in leaves:
            array.copy_(leaves[op, int(index)].flatten())

    cell = program.declaration
    sizes = [SIZES[size] for size in ("hidden_size", *cell.sizes)]
    function = library[f"run_{name}_{program.streams}"]
    function.restype = ctypes.c_char_p
    error = function(
        ctypes.c_int64(ROWS),
        ctypes.c_int64(len(sizes)),
        (ctypes.c_int64 * len(sizes))(*sizes),
        ctypes.c_int64(len(matrices)),
        (ctypes.c_int64 * len(matrices))(*(m.numel() for m in matrices)),
        exchange,
    )
    assert error == b""
    return results


def evaluate(program, leaves, matrices):
    """The values of all nodes, the products made as the engine makes them."""
    values, count = {}, len(program.products)

    def wide(node, width):
        return values[node].expand(ROWS, SIZES.get(width, 1)).to(torch.float64)

    def compute(node, args):
        use = program.products[node.index % count]
        both = [use.matrix, use.matrix + len(matrices) // 2]  # of the second: tangents
        if node.op == "product":
            operands = [wide(arg, use.source_width) for arg in node.args]
            result = operands[-1] @ matrices[both[0]].T
            return result + operands[0] @ matrices[both[1]].T if len(operands) == 2 else result
        assert node.op == "doperand"
        returned = program.dproduct[node.index % count :: count]
        ir.evaluate(returned, leaves, compute, values)
        dproducts = [wide(value, use.to) for value in returned]
        if node.index < count and program.streams == 2:
            return dproducts[0] @ matrices[both[0]] + dproducts[1] @ matrices[both[1]]
        return dproducts[-1] @ matrices[both[0]]

    kept = [saved.node for saved in plan.plan(program).saved]
    return ir.evaluate([*program.results(), *kept], leaves, compute, values)


def expected(program, leaves, matrices):
    """What each call should have written, by the program's meaning."""
    values = evaluate(program, leaves, matrices)
    kept = plan.plan(program).saved
    wanted = {("saved", j): values[saved.node].double() for j, saved in enumerate(kept)}
    for op in ("next", "dstate", "dparam", "dproduct"):
        wanted |= {(op, k): values[node] for k, node in enumerate(getattr(program, op))}
    for op in ("da", "dx", "dr"):
        wanted |= {(op, g): values[node] for g, node in getattr(program, op).items()}
    return wanted


@pytest.mark.parametrize(("name", "streams"), CASES)
def test_compiled_cell_computes_its_program(library, programs, name, streams):
    program = programs[name, streams]
    leaves, matrices = leaves_of(program, torch.Generator().manual_seed(1))
    results = run(library, program, name, leaves, matrices)
    for key, value in expected(program, leaves, matrices).items():
        actual = results[key].view(ROWS, -1)
        torch.testing.assert_close(
            actual,
            value.expand_as(actual),
            rtol=1e-12,
            atol=1e-12,
            equal_nan=True,
            msg=lambda text, key=key: f"{name}, {key}: {text}",
        )


def test_text_of_a_header():
    program = trace.lower(record(CELLS["TanhRNN"]))
    assert emit.header(program, "TanhRNN_0123") == textwrap.dedent(
        """\
        // TanhRNN, generated from Python.
        //
        //   gates: a
        //   states: h
        //
        //   @cell(gates=("a",))
        //   def TanhRNN(a):
        //       return torch.tanh(a)
        #pragma once

        #include "cells/math.h"
        #include "engine/cell.h"

        namespace rnnext::RNNEXT_ISA {

        struct TanhRNN {
          static constexpr CellShape shape{.name = "TanhRNN_0123", .summed = 1};
          enum Gate { A };
          enum State { H };

          template <int, class U, class V = typename U::V>
          RNNEXT_INLINE static void forward(U& u) {
            // return torch.tanh(a)
            const V a = tanh(u.a(A));
            u.next(H, a);
          }

          template <int, class U, class V = typename U::V>
          RNNEXT_INLINE static void backward(U& u) {
            const V a = u.next(H);
            u.da(A, u.dnext(H) * (V(1) - a * a));
            u.dstate(H, V(0));
          }
        };

        }  // namespace rnnext::RNNEXT_ISA
        """
    )


def test_the_same_cell_gives_the_same_text(programs):
    for name in ("LayerNormLSTM", "switch"):
        again = trace.lower(record(CELLS[name]))
        assert emit.header(again, "x") == emit.header(programs[name, 1], "x")


def test_lines_fit_the_width_of_the_code(programs):
    for program in programs.values():
        for line in emit.header(program, "x").splitlines():
            assert len(line) <= 120 or line.lstrip().startswith("//")


def test_a_step_without_a_source_file():
    names = {}
    exec("def step(a, h):\n    return a.tanh() + h", names)
    program = trace.lower(record(declare("NOWHERE", names["step"], gates=("a",))))
    header = emit.header(program, "x")
    assert "const V a = tanh(u.a(A));" in header
    assert "u.next(H, a + u.state(H));" in header


def test_a_backslash_does_not_continue_a_comment():
    def step(a, h):
        return a + \
            h  # fmt: skip

    header = emit.header(trace.lower(record(declare("LONG", step, gates=("a",)))), "x")
    assert "\\" not in header
