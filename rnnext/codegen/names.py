"""Names in generated C++: valid identifiers, as near to the user's own as may be."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict

from rnnext.codegen.ir import LEAVES, Node, Program, walk

_KEYWORDS = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t
char32_t class compl concept const const_cast consteval constexpr constinit continue co_await
co_return co_yield decltype default delete do double dynamic_cast else enum explicit export extern
false float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr
operator or or_eq private protected public register reinterpret_cast requires return short signed
sizeof static static_assert static_cast struct switch template this thread_local throw true try
typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq
"""
_FUNCTIONS = """
fma mask_and mask_or mask_xor mask_not select exp expm1 log log1p sin cos tanh sigmoid erf pow sqrt
rsqrt abs relu minimum maximum floor ceil trunc round sign forward backward shape sum_of
"""
_MACROS = """
NULL EOF NAN INFINITY HUGE_VAL BUFSIZ errno assert unix linux stdin stdout stderr RNNEXT_ISA
RNNEXT_INLINE
"""
# What surrounds a generated struct, and the names that its functions use for themselves.
_SURROUNDINGS = """
u U V T Stage rnnext std cells Cell CellShape Group Product Noise Values Rows Vec Register
Exponent Exp Units StepForward StepBackward kHidden kOne int8_t int32_t int64_t
"""
RESERVED = frozenset(f"{_KEYWORDS} {_FUNCTIONS} {_MACROS} {_SURROUNDINGS}".split())


def identifier(name: str) -> str:
    """The nearest thing to a name that C++ allows; it may still be reserved.

    Example:
        >>> identifier("_σ__gate"), identifier("é"), identifier("2x")
        ('u3c3_gate', 'e', 'v2x')
    """
    ascii_name = ""
    for letter in unicodedata.normalize("NFKD", name):
        if letter.isascii():
            ascii_name += letter if letter.isalnum() else "_"
        elif not unicodedata.combining(letter):
            ascii_name += f"u{ord(letter):x}"
    ascii_name = re.sub("_+", "_", ascii_name).strip("_")  # C++ reserves __ and a leading _
    return ascii_name if ascii_name and not ascii_name[0].isdigit() else f"v{ascii_name}"


class Scope:
    """Names that are taken, and new ones that are not.

    Example:
        >>> scope = Scope()
        >>> scope.new("z"), scope.new("z"), scope.new("tanh")
        ('z', 'z_2', 'tanh_2')
    """

    def __init__(self, taken: frozenset[str] | set[str] = frozenset()) -> None:
        self.taken = set(RESERVED | taken)
        self.count = 0

    def next(self, letter: str) -> str:
        """A letter and the next number: v1, v2, ..."""
        self.count += 1
        return f"{letter}{self.count}"

    def new(self, wish: str) -> str:
        """An identifier like the one wished for, from now on taken."""
        base = name = identifier(wish)
        count = 1
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name


def split_source(source: str) -> tuple[str, str]:
    """Place and line of a node's source.

    Example:
        >>> split_source("cells.py:12: z = torch.sigmoid(z)")
        ('cells.py:12', 'z = torch.sigmoid(z)')
    """
    match = re.match(r"(.*?:\d+)(?:: (.*))?$", source, re.DOTALL)
    place, line = match.groups("") if match else ("", source)
    # A backslash at its end would continue a comment.
    return place, " ".join(line.split()).rstrip("\\ ")


def variables(program: Program) -> dict[Node, str]:
    """The user's names of forward values: where a source line is a plain assignment.

    The value assigned is the one that no other value of the same line uses; several, if the line
    runs more than once. The one function of a gate takes the gate's name, whatever its line.
    """
    nodes = list(walk(forward_results(program)))
    lines: dict[str, list[Node]] = defaultdict(list)
    inner: set[Node] = set()
    for node in nodes:
        if node.op not in LEAVES and node.source:
            lines[node.source].append(node)
        inner.update(arg for arg in node.args if arg.source == node.source)
    found: dict[Node, str] = {}
    operands = {operand for use in program.products for operand in use.operands}
    for source, of_line in lines.items():
        match = re.match(r"(\w+)\s*(:[^=]*)?[-+*/]?=(?!=)", split_source(source)[1])
        results = [node for node in of_line if node not in inner]
        results = [node for node in results if node not in operands] or results
        if match:
            found |= dict.fromkeys(results, match[1])
    functions: dict[Node, list[Node]] = defaultdict(list)
    for node in nodes:
        if len(node.args) == 1 and node.args[0].op.startswith("gate"):
            functions[node.args[0]].append(node)
    for gate, of_gate in functions.items():
        if len(of_gate) == 1:
            found.setdefault(of_gate[0], gates(program)[gate.index])
    return found


def forward_results(program: Program) -> list[Node]:
    """What the step computes: new states, and operands of products."""
    return [*program.next, *(operand for use in program.products for operand in use.operands)]


def leaf_name(program: Program, node: Node) -> str:
    """What a leaf, or a product's result, may be called; "" for all others."""
    cell = program.declaration
    match node.op:
        case "gate":
            return f"a_{gates(program)[node.index]}"
        case "gate_x":
            return f"x_{gates(program)[node.index]}"
        case "gate_h":
            return f"r_{gates(program)[node.index]}"
        case "state" | "dnext":
            state = streamed(program, list(cell.states))[node.index]
            return state if node.op == "state" else f"d{state}"
        case "param":
            return streamed(program, list(cell.params))[node.index]
        case "noise":
            return list(cell.noise)[node.index]
        case "batch":
            return "batch"
        case "product" | "doperand":
            product = products(program)[node.index]
            return product if node.op == "product" else f"d{product}_operand"
    return ""


def gates(program: Program) -> list[str]:
    """Names of all gates in their order, those of the tangents after the others."""
    cell = program.declaration
    return streamed(program, [*cell.gates, *cell.apart_gates, *cell.input_gates])


def products(program: Program) -> list[str]:
    """Names of all products, by their matrices."""
    matrices = list(program.declaration.matrices)
    return streamed(program, [f"{matrices[use.matrix]}_product" for use in program.products])


def streamed(program: Program, names: list[str]) -> list[str]:
    """These names, and with two streams those of their tangents."""
    return names if program.streams == 1 else [*names, *(f"{name}_t" for name in names)]
