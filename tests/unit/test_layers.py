"""Imports point one way: the file map in docs/design.md is the order."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "semel"


class Import(NamedTuple):
    by: str
    of: str
    for_types: bool


@cache
def modules() -> dict[str, Path]:
    def name(file: Path) -> str:
        parts = ("semel", *file.relative_to(SOURCES).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    return {name(file): file for file in SOURCES.rglob("*.py")}


@cache
def layers() -> list[list[str]]:
    """The rows of the file map, first to last; a package stands for its modules."""
    table = (ROOT / "docs" / "design.md").read_text().partition("In `src/semel/`")[2].partition("\n\nDecisions")[0]
    rows: list[list[str]] = []
    for line in table.splitlines():
        if line.startswith("| `"):
            package, row = "semel", list[str]()
            for name in re.findall(r"`([\w/]+)`", line.split("|")[1]):
                path = name.rstrip("/").split("/")
                package = ".".join(["semel", *path[:-1]]) if "/" in name else package
                row.append(f"{package}.{path[-1]}")
            rows.append(row)
    return rows


def layer(module: str) -> int | None:
    """The row that a module, or the package it is in, stands in."""
    rows = {name: number for number, row in enumerate(layers()) for name in row}
    parts = module.split(".")
    return next((rows[name] for end in range(len(parts), 1, -1) if (name := ".".join(parts[:end])) in rows), None)


def imported(tree: ast.AST, *, for_types: bool = False) -> Iterator[tuple[str, bool]]:
    """The dotted names that a module imports, wherever it does, and whether a type checker alone sees it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imported(ast.Module(node.body, []), for_types=True)
            yield from imported(ast.Module(node.orelse, []), for_types=for_types)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((f"{node.module}.{alias.name}", for_types) for alias in node.names)
        else:
            yield from imported(node, for_types=for_types)


@cache
def imports() -> set[Import]:
    """Who imports whom. The package itself, which hands on the public names, and `__main__` stand outside."""
    edges: set[Import] = set()
    for module, file in modules().items():
        for name, for_types in imported(ast.parse(file.read_text())):
            of = name if name in modules() else name.rpartition(".")[0]
            assert of != "semel" or name == "semel", f"{module} takes {name} from the package and not from its module"
            if of in modules() and "semel" not in (module, of) and module != "semel.__main__":
                edges.add(Import(module, of, for_types))
    return edges


def against_the_order(*, for_types: bool) -> set[tuple[str, str]]:
    at_run_time = {(edge.by, edge.of) for edge in imports() if not edge.for_types}
    return {
        (edge.by, edge.of)
        for edge in imports()
        if edge.for_types is for_types
        and not (for_types and (edge.by, edge.of) in at_run_time)
        and (above := layer(edge.of)) is not None
        and (own := layer(edge.by)) is not None
        and above > own
    }


def test_every_module_has_one_place_on_the_map_and_what_is_on_it_is_there() -> None:
    places = [name for row in layers() for name in row]
    assert len(places) == len(set(places)) > 40
    assert set(places) <= modules().keys()
    outside = {name for name in modules() if layer(name) is None}
    assert outside == {"semel", "semel.__main__", "semel.group", "semel.stages", "semel.state", "semel.worker"}


def test_imports_point_one_way() -> None:
    assert against_the_order(for_types=False) == set()


def test_imports_for_types_point_one_way() -> None:
    assert against_the_order(for_types=True) == set()


def folder(module: str) -> str:
    """The folder of a module, a stage by itself; of those beside the folders, the module."""
    first, *rest = module.split(".")[1:]
    return ".".join(["stages", *rest[:1]]) if first == "stages" else first


def test_no_folders_import_each_other_in_a_circle_not_even_for_types() -> None:
    graph: dict[str, set[str]] = {}
    for edge in imports():
        if folder(edge.by) != folder(edge.of):
            graph.setdefault(folder(edge.by), set()).add(folder(edge.of))
    TopologicalSorter(graph).prepare()


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for edge in imports():
        if not edge.for_types:
            graph.setdefault(edge.by, set()).add(edge.of)
    TopologicalSorter(graph).prepare()


def test_an_import_is_seen_wherever_it_stands() -> None:
    source = """
import semel.topic
if TYPE_CHECKING:
    from semel.plan import Plan
else:
    from semel import codec
def late():
    try:
        from semel.errors import Reject
    finally:
        pass
"""
    assert set(imported(ast.parse(source))) == {
        ("semel.topic", False),
        ("semel.plan.Plan", True),
        ("semel.codec", False),
        ("semel.errors.Reject", False),
    }
