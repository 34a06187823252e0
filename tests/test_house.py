"""The order of the house, read from every import and include: arrows run down, nobody goes in circles, torch
stays at its edge. CONTRIBUTING.md's layout says what the rooms are for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "fastrnn"

#: Rooms of the package from the ground up: one uses those before it.
PYTHON_FLOORS = (
    ("_version",),
    ("_cells",),
    ("reference",),
    ("_ops",),
    ("_checks",),
    ("_plan",),
    ("_run",),
    ("functional",),
    ("modules",),
    ("models", "compat", "runtime"),
    ("proof",),
    ("cli",),
    ("__init__", "__main__"),
)
#: The same for csrc. cpu and cuda are houses of their own, beside each other.
CPP_FLOORS = (
    ("cells",),
    ("cells/policies",),
    ("params",),
    ("plan",),
    ("ops",),
    ("cpu", "cpu/simd", "cuda/device"),
    ("cpu/product", "cuda/torch"),
    ("cpu/rnn", "cpu/scan", "cpu/stream", "cuda/stepwise", "cuda/scan", "cuda/persistent"),
    ("cpu/quantized", "cpu/quantized/isa"),
    ("cpu/isa", "cuda/ops"),
    ("cpu/ops", "stream", "stream/isa"),
    (".",),
)


def floors(order: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    return {room: number for number, rooms in enumerate(order) for room in rooms}


def modules() -> dict[str, Path]:
    """Files of the package by their dotted name below it; "" is its __init__."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        found[name.removesuffix("__init__").rstrip(".")] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """What a module imports of the package. Not what only a type checker reads."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = package.split(".") if package else []
        parts = parts[: len(parts) - node.level + 1]
        base = ".".join([*parts, *(node.module or "").split(".")]).rstrip(".")
        for alias in node.names:
            inner = f"{base}.{alias.name}".lstrip(".")
            yield inner if inner in known or alias.name == "_C" else base


def python_room(name: str) -> str:
    return name.split(".")[0] if name else "__init__"


def sources(*suffixes: str) -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in suffixes)


def includes(path: Path) -> list[str]:
    return re.findall(r'^#include "(.+)"$', path.read_text(), re.M)


def cycle(graph: dict[str, list[str]]) -> list[str]:
    """A way through the graph that comes back to where it began, or []."""
    done: set[str] = set()
    way: list[str] = []

    def visit(node: str) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        way.append(node)
        for successor in graph.get(node, ()):
            if found := visit(successor):
                return found
        done.add(way.pop())
        return []

    for node in graph:
        if found := visit(node):
            return found
    return []


def test_python_arrows_run_down():
    """A floor imports from its own and those below it."""
    level, known = floors(PYTHON_FLOORS), modules()
    upward = [
        f"{name or 'fastrnn'} -> {target}"
        for name, path in known.items()
        for target in imports(name, path, known)
        if target != "_C"
        if level[python_room(target)] > level[python_room(name)]
    ]
    assert not upward


def test_python_goes_in_no_circle():
    """Between modules, imports inside functions included."""
    known = modules()
    graph = {
        name: [t for t in imports(name, path, known) if t not in (name, "_C")] for name, path in known.items()
    }
    assert not cycle(graph)


def test_one_file_opens_the_binary():
    """fastrnn._C, and the libraries of operators, have one door."""
    known = modules()
    users = {name for name, path in known.items() if "_C" in set(imports(name, path, known))}
    assert users == {"_ops.library"}
    loads = {name for name, path in known.items() if "load_library(" in path.read_text()}
    assert loads == {"_ops.library"}


def test_cpp_arrows_run_down():
    level = floors(CPP_FLOORS)
    upward = []
    for path in sources(".h", ".inl", ".cuh", ".cpp", ".cu"):
        room = path.relative_to(CSRC).parent.as_posix()
        for target in includes(path):
            if level[Path(target).parent.as_posix()] > level[room]:
                upward.append(f"{path.relative_to(CSRC)} -> {target}")
    assert not upward


def test_cpp_goes_in_no_circle():
    graph = {str(path.relative_to(CSRC)): includes(path) for path in sources(".h", ".inl", ".cuh")}
    assert not cycle(graph)


def test_includes_are_files_of_csrc():
    """Written from csrc/ on, so that none is a header of the tests and every move shows where it must."""
    for path in sources(".h", ".inl", ".cuh", ".cpp", ".cu"):
        for target in includes(path):
            assert (CSRC / target).is_file(), f"{path.relative_to(CSRC)} includes {target}"


@pytest.mark.parametrize("house", ["cpu", "cuda"])
def test_devices_do_not_look_at_each_other(house):
    other = "cuda/" if house == "cpu" else "cpu/"
    for path in sources(".h", ".inl", ".cuh", ".cpp", ".cu"):
        if path.is_relative_to(CSRC / house):
            assert not [t for t in includes(path) if t.startswith(other)], path


def test_torch_stays_at_its_edge():
    """Cells, parameters, plans and kernels know pointers and sizes: they compile fast, and without torch."""
    kernels = sources(".inl", ".cu", ".cuh")
    below = [path for room in ("cells", "params", "plan") for path in (CSRC / room).rglob("*.*")]
    for path in (*kernels, *below):
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text()), path


def test_twins_stand_in_for_headers_that_exist():
    """The emulator's twins hide csrc's headers by their path: one whose original moved would hide nothing."""
    twins = ROOT / "tests" / "emu" / "twins"
    for twin in filter(Path.is_file, twins.rglob("*")):
        assert (CSRC / twin.relative_to(twins)).is_file(), twin


#: Comparisons with a cell's name that ask for none of its facts: a choice that a model's caller makes by that
#: name; TorchScript, which has no cards, and picks torch's own function.
NAMED_ON_PURPOSE = {
    "models/memory_network.py": ["sentence == 'gru'"],
    "modules/_script_rnn.py": [
        "mode == 'LSTM'",
        "mode == 'GRU'",
        "mode == 'RNN_TANH'",
        "kind == 'lstm'",
        "kind == 'gru'",
    ],
}


def names_of_cells() -> set[str]:
    """As fastrnn, torch.nn and their classes call the cells."""
    rooms = (PACKAGE / "_cells").glob("*.py")
    cards = [
        node
        for path in rooms
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Card"
    ]
    names = {a.value for card in cards for a in card.args[:2] if isinstance(a, ast.Constant) and a.value}
    return names | {f"{name}Cell" for name in names}


def compared(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """Comparisons of anything with one of the names, or with a tuple, a list or a set that has some."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            literals = [
                part
                for side in (node.left, *node.comparators)
                for part in (side.elts if isinstance(side, (ast.Tuple, ast.List, ast.Set)) else [side])
            ]
            if any(isinstance(part, ast.Constant) and part.value in names for part in literals):
                yield ast.unparse(node)
        elif isinstance(node, ast.MatchValue) and getattr(node.value, "value", None) in names:
            yield ast.unparse(node)


def test_cells_are_asked_for_their_facts():
    """Whoever asks "is it an LSTM?" means a fact of its card: one more cell is one more row of the list, and
    no hunt for its name."""
    names = names_of_cells()
    assert {"lstm", "gru", "sru", "LSTM", "RNN_TANH", "GRUCell"} <= names
    assert list(compared(ast.parse("a == 'gru' or b in ('x', 'lstm') or c != 'tanh'"), names)) == [
        "a == 'gru'",
        "b in ('x', 'lstm')",
    ]
    found = {
        path.relative_to(PACKAGE).as_posix(): comparisons
        for path in PACKAGE.rglob("*.py")
        if (comparisons := list(compared(ast.parse(path.read_text()), names)))
    }
    assert {name: sorted(c) for name, c in found.items()} == {
        name: sorted(c) for name, c in NAMED_ON_PURPOSE.items()
    }


#: What torch is asked about the moment of a call, by the functions' names.
QUESTIONS = {
    "is_compiling",
    "is_exporting",
    "_is_exporting_flag",
    "is_grad_enabled",
    "is_autocast_enabled",
    "_is_any_autocast_enabled",
    "is_autocast_available",
    "get_autocast_dtype",
    "_get_tracing_state",
    "_are_functorch_transforms_active",
    "_functorch",
    "_len_torch_dispatch_stack",
    "_len_torch_function_stack",
    "_get_fp32_precision_getter",
    "_current_level",
}


def test_torch_is_asked_in_one_file():
    """What the package asks torch about the moment of a call stands in _ops/torch_state.py: some of it is
    torch's own business, which changes from version to version. The models are programs on the public layers,
    and ask as anybody's would."""
    users = {
        path.relative_to(PACKAGE).as_posix(): asked
        for path in PACKAGE.rglob("*.py")
        if "models" not in path.parts
        and (
            asked := QUESTIONS
            & {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        )
    }
    assert users.pop("_ops/torch_state.py") == QUESTIONS - {"is_exporting"}
    # On a layer's way to the operator, where each function costs as much as a kernel's step.
    assert users.pop("_run/quick.py") == {"_current_level"}
    assert users.pop("_ops/autograd.py") == {"_is_exporting_flag"}
    assert not users
