"""Whatever is public says what it is, and each mixer says what a comparison has to know."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.structure.sources import PACKAGE, Function, files, parse, place

MIXER_FIELDS = ("Paper:", "Differs:", "Shapes:", "Cost:", "Raises:")
SOURCES = {path: parse(path) for path in files(PACKAGE)}


def public_methods(tree: ast.Module) -> Iterator[tuple[ast.ClassDef, Function]]:
    """The public methods of the public classes of a file."""
    for owner in tree.body:
        if isinstance(owner, ast.ClassDef) and not owner.name.startswith("_"):
            for node in owner.body:
                if isinstance(node, Function) and not node.name.startswith("_"):
                    yield owner, node


def documented_methods(trees: list[ast.Module]) -> set[str]:
    """Names of the methods that some class documents; an override need not repeat it."""
    return {node.name for tree in trees for _, node in public_methods(tree) if ast.get_docstring(node)}


def undocumented(tree: ast.Module, inherited: set[str]) -> list[tuple[int, str]]:
    """Line and name of what is public and has no docstring."""
    found = [] if ast.get_docstring(tree) else [(1, "the module")]
    for node in tree.body:
        public = isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")
        if public and not ast.get_docstring(node):
            found.append((node.lineno, node.name))
    for owner, node in public_methods(tree):
        overrides = bool(owner.bases) and node.name in inherited
        if not overrides and not ast.get_docstring(node):
            found.append((node.lineno, f"{owner.name}.{node.name}"))
    return found


def missing_fields(tree: ast.Module) -> list[str]:
    """The fields of a mixer's module docstring that are not there, or that are empty."""
    lines = [line.strip() for line in (ast.get_docstring(tree) or "").splitlines()]
    filled = {field for field in MIXER_FIELDS for line in lines if line.startswith(field) and line != field}
    return [field for field in MIXER_FIELDS if field not in filled]


@pytest.mark.parametrize("path", SOURCES, ids=place)
def test_public_names_have_docstrings(path: Path) -> None:
    found = undocumented(SOURCES[path], documented_methods(list(SOURCES.values())))
    assert not found, "\n".join(f"{place(path, line)}: {name} has no docstring" for line, name in found)


@pytest.mark.parametrize("path", list(files(PACKAGE / "nn" / "mixers")), ids=place)
def test_mixers_fill_in_the_fields(path: Path) -> None:
    if path.stem.startswith("_"):
        return
    missing = missing_fields(SOURCES[path])
    assert not missing, f"{place(path)}: the module docstring lacks {', '.join(missing)}"


def test_the_checks_can_fail() -> None:
    bad = ast.parse("class A(B):\n  def forward(self): ...\n  def other(self): ...\ndef f(): ...\ndef _g(): ...")
    assert [name for _, name in undocumented(bad, {"forward"})] == ["the module", "A", "f", "A.other"]
    assert "A.forward" in [name for _, name in undocumented(bad, set())]
    good = ast.parse('"""M."""\nclass A:\n  """A."""\n  def f(self):\n    """F."""')
    assert not undocumented(good, set())
    assert documented_methods([good]) == {"f"}
    fields = '"""Name.\n\nPaper:    a\nDiffers:  b\nShapes:\nCost:     c\nRaises:   d\n"""'
    assert missing_fields(ast.parse(fields)) == ["Shapes:"]
