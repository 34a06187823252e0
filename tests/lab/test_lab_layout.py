"""The laboratory's rooms: nothing goes round in circles, and a contender is a file and a line."""

from __future__ import annotations

import ast
import importlib
from graphlib import TopologicalSorter
from pathlib import Path

from benchmarks.lab.contenders import registry

LAB = Path(__file__).resolve().parents[2] / "benchmarks" / "lab"


def imports(path: Path) -> set[str]:
    """Modules of the laboratory that a file imports, inside functions too, as paths from its folder."""
    package = path.relative_to(LAB).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1] + tuple(filter(None, (node.module or "").split(".")))
        for name in node.names:
            file = LAB.joinpath(*base, f"{name.name}.py")
            file = file if file.exists() else LAB.joinpath(*base).with_suffix(".py")
            found.add(file.relative_to(LAB).as_posix())
    return found


def test_no_circles():
    """Protects the order: a base never imports the registry that lists what is built on it, contenders never
    the report, pictures never who asks for them."""
    graph = {p.relative_to(LAB).as_posix(): imports(p) for p in LAB.rglob("*.py")}
    assert len(graph) > 30
    assert "contenders/contender.py" in graph["contenders/flashrnn.py"]
    order = list(TopologicalSorter(graph).static_order())  # CycleError names the circle
    assert set(order) == set(graph)
    for name, found in graph.items():
        if name.startswith("contenders/"):
            assert not [f for f in found if f.startswith("report/")], name
            assert name == "contenders/registry.py" or "contenders/registry.py" not in found, name


def test_every_contender_is_registered():
    """Protects a new contender from being forgotten: the rows of each file are in the registry, once."""
    found = []
    for path in sorted((LAB / "contenders").glob("*.py")):
        module = importlib.import_module(f"benchmarks.lab.contenders.{path.stem}")
        if path.stem != "registry":
            found += getattr(module, "ROWS", ())
    keys = sorted(row.key for row in registry.ROWS)
    assert sorted(row.key for row in found) == keys == sorted(registry.KEYS)
    assert all(row.name and row.color.startswith("#") and row.marker for row in registry.ROWS)
