"""Every kernel of the package can be read by its signature: a checker, and tests of the checker.

All arguments of a kernel are typed and none has a default. Those that it writes end in `_out`
(overwritten) or `_io` (accumulated) and stand behind those that it only reads. Writes are found
in the syntax tree: assignments to entries, atomics, tile stores, also through a row that was taken
out of an array (`row = x[i]`) and inside a `wp.func` that is handed the array.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffenvs"
OUTPUT = ("_out", "_io")
STORES = ("atomic_", "tile_store", "tile_atomic_", "tile_scatter_")

Writers = dict[str, set[int]]  # name of a wp.func -> positions of the arguments that it writes


def _functions(tree: ast.AST, decorator: str) -> Iterator[ast.FunctionDef]:
    """Functions decorated by `wp.<decorator>`, with or without options."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            calls = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
            if any(ast.unparse(c) in (f"wp.{decorator}", f"warp.{decorator}") for c in calls):
                yield node


def _arguments(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args]


def _ndim(annotation: ast.expr | None) -> int:
    """Dimensions of an annotated array: `wp.array2d[float]`, `wp.array(dtype=float, ndim=2)`."""
    if isinstance(annotation, ast.Call):
        for keyword in annotation.keywords:
            if keyword.arg == "ndim" and isinstance(keyword.value, ast.Constant):
                return int(keyword.value.value)
        annotation = annotation.func
    elif isinstance(annotation, ast.Subscript):
        annotation = annotation.value
    name = ast.unparse(annotation).rpartition(".")[2] if annotation else ""
    dimensions = {"array": 1, "array1d": 1, "array2d": 2, "array3d": 3, "array4d": 4}
    return dimensions.get(name, 0)


class _Writes(ast.NodeVisitor):
    """Collects the arguments of one function that its body writes, following rows of arrays."""

    def __init__(self, function: ast.FunctionDef, writers: Writers) -> None:
        self.writers = writers
        self.found: set[str] = set()
        # Local name -> the argument that it refers to and the dimensions that are left of it.
        self.refers = {a.arg: (a.arg, _ndim(a.annotation)) for a in _arguments(function)}
        for statement in function.body:
            self.visit(statement)

    def _reference(self, value: ast.expr) -> tuple[str, int] | None:
        """What an expression refers to: an argument, or a part of an array that is an array."""
        indices = 0
        while isinstance(value, ast.Subscript):
            indices += len(value.slice.elts) if isinstance(value.slice, ast.Tuple) else 1
            value = value.value
        if not isinstance(value, ast.Name) or value.id not in self.refers:
            return None
        argument, ndim = self.refers[value.id]
        return (argument, ndim - indices) if indices < ndim or not indices else None

    def _write(self, target: ast.expr) -> None:
        """Note the argument behind an assigned entry, of an array or of a struct's array."""
        for part in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(part, ast.Subscript | ast.Attribute):
                while isinstance(part, ast.Subscript | ast.Attribute):
                    part = part.value
                if isinstance(part, ast.Name) and part.id in self.refers:
                    self.found.add(self.refers[part.id][0])

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._write(target)
            if isinstance(target, ast.Name):
                reference = self._reference(node.value)
                self.refers.pop(target.id, None)
                if reference:
                    self.refers[target.id] = reference

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        self._write(node.target)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        name = ast.unparse(node.func).rpartition(".")[2]
        stores = ast.unparse(node.func).startswith(("wp.", "warp.")) and name.startswith(STORES)
        for position in {0} if stores else self.writers.get(name, set()):
            if position < len(node.args):
                reference = self._reference(node.args[position])
                if reference:
                    self.found.add(reference[0])


def _writers(trees: list[ast.AST]) -> Writers:
    """Which arguments the functions write, themselves or through the functions that they call."""
    writers: Writers = defaultdict(set)
    size = -1
    while size != sum(map(len, writers.values())):
        size = sum(map(len, writers.values()))
        for function in (f for tree in trees for f in _functions(tree, "func")):
            found = _Writes(function, writers).found
            for position, argument in enumerate(_arguments(function)):
                if argument.arg in found and _ndim(argument.annotation):
                    writers[function.name].add(position)
    return writers


def check(sources: dict[str, str]) -> tuple[list[str], int]:
    """Return what is wrong with the kernels of the given files, and how many kernels there are."""
    trees = {name: ast.parse(text) for name, text in sources.items()}
    writers = _writers(list(trees.values()))
    issues, count = [], 0
    for file, tree in trees.items():
        for kernel in _functions(tree, "kernel"):
            count += 1
            where = f"{file}:{kernel.lineno}: {kernel.name}"
            arguments = _arguments(kernel)
            issues += [f"{where}: {a.arg} has no type" for a in arguments if a.annotation is None]
            special = (kernel.args.vararg, kernel.args.kwarg, *kernel.args.kwonlyargs)
            if kernel.args.defaults or any(special):
                issues.append(f"{where}: has a default or a variable number of arguments")
            seen_output = False
            for a in arguments:
                is_output = a.arg.endswith(OUTPUT)
                if seen_output and not is_output:
                    issues.append(f"{where}: the input {a.arg} stands behind an output")
                seen_output |= is_output
            written = _Writes(kernel, writers).found
            issues += [
                f"{where}: writes to the input {a.arg}"
                for a in arguments
                if a.arg in written and not a.arg.endswith(OUTPUT)
            ]
    return issues, count


def test_kernels_of_the_package():
    """Every kernel in `diffenvs` follows the rules."""
    sources = {
        str(path.relative_to(PACKAGE.parent)): path.read_text()
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    issues, count = check(sources)
    assert issues == []
    assert count > 0


HELPERS = """
@wp.func
def clear(n: int, x: wp.array[float]):
    x[n] = 0.0

@wp.func
def clear_first(x: wp.array[float]):
    clear(0, x)

@wp.func
def shift(v: wp.vec3):
    v[0] = v[0] + 1.0
    return v
"""


def _kernel(arguments: str, *body: str) -> dict[str, str]:
    lines = [f"def k({arguments}):", "    w = wp.tid()", *(f"    {line}" for line in body)]
    return {"helpers.py": HELPERS, "file.py": "\n".join(["@wp.kernel", *lines])}


X, X2, Y = "x_in: wp.array[float]", "x_in: wp.array2d[float]", "y_out: wp.array[float]"


@pytest.mark.parametrize(
    ("source", "issue"),
    [
        (_kernel(f"x_in, {Y}", "y_out[w] = x_in[w]"), "x_in has no type"),
        (_kernel("n: int = 3", "m = n"), "has a default"),
        (_kernel(f"{Y}, *rest: int", "y_out[w] = 0.0"), "variable number of arguments"),
        (_kernel(f"{Y}, *, n: int", "y_out[w] = 0.0"), "variable number of arguments"),
        (_kernel(f"{Y}, {X}", "y_out[w] = x_in[w]"), "the input x_in stands behind"),
        (_kernel("y_io: wp.array[float], n: int", "y_io[w] += 1.0"), "the input n stands behind"),
        (_kernel(X, "x_in[w] = 0.0"), "writes to the input x_in"),
        (_kernel(X, "x_in[w] += 1.0"), "writes to the input x_in"),
        (_kernel(X, "for i in range(3):", "    if w > i:", "        x_in[w] = 0.0"), "input x_in"),
        (_kernel("v_in: wp.array[wp.vec3]", "v_in[w][1] = 0.0"), "writes to the input v_in"),
        (_kernel("v_in: wp.array[wp.vec3]", "v_in[w].x = 0.0"), "writes to the input v_in"),
        (_kernel("p: Params", "p.table[w] = 0.0"), "writes to the input p"),
        (_kernel(X, "wp.atomic_add(x_in, w, 1.0)"), "writes to the input x_in"),
        (_kernel(X, "old = wp.atomic_max(x_in, w, 1.0)"), "writes to the input x_in"),
        (_kernel(X2, "wp.tile_store(x_in[w], t)"), "writes to the input x_in"),
        (_kernel(X2, "row = x_in[w]", "row[2] = 0.0"), "writes to the input x_in"),
        (_kernel("x_in: wp.array(dtype=float, ndim=2)", "r = x_in[w]", "r[2] = 0.0"), "input x_in"),
        (_kernel("x_in: wp.array2d(dtype=float)", "r = x_in[w]", "r[2] = 0.0"), "input x_in"),
        (_kernel(X, "clear(w, x_in)"), "writes to the input x_in"),
        (_kernel(X2, "clear_first(x_in[w])"), "writes to the input x_in"),
    ],
)
def test_checker_reports(source, issue):
    """Each rule has a kernel that breaks it, and the message names the file and the argument."""
    issues, count = check(source)
    assert count == 1
    assert len(issues) == 1
    assert issues[0].startswith("file.py:2: k: ")
    assert issue in issues[0]


@pytest.mark.parametrize(
    "source",
    [
        _kernel(f"{X}, {Y}", "y_out[w] = x_in[w]"),
        _kernel(f"n: int, {X}, y_io: wp.array[float]", "wp.atomic_add(y_io, w, x_in[n])"),
        _kernel(f"{X2}, {Y}", "row = x_in[w]", "row = y_out", "row[w] = x_in[w, 0]"),
        _kernel(f"{X2}, {Y}", "clear(w, y_out)", "y_out[w] = wp.dot(x_in[w, 0], 1.0)"),
        # A vector that was read from an array, or handed to a function, is a copy.
        _kernel(f"v_in: wp.array[wp.vec3], {Y}", "v = v_in[w]", "v[0] = 2.0", "y_out[w] = v[0]"),
        _kernel(f"v_in: wp.array[wp.vec3], {Y}", "v = shift(v_in[w])", "y_out[w] = v[0]"),
        {"file.py": "def host(x_in, y_out, n=3):\n    x_in[0] = 1"},
    ],
)
def test_checker_accepts(source):
    """Kernels that follow the rules, and functions that are no kernels, pass."""
    assert check(source)[0] == []
