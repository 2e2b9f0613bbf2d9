"""What the structure tests share: the project's files, read and parsed but never imported."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "paribus"
WRITTEN = ("src", "tests", "benchmarks", "studies", "docs")
MADE_BY_TOOLS = {"__pycache__", "build", "dist", "site", "runs", "cache"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(*folders: Path | str, endings: tuple[str, ...] = (".py",)) -> Iterator[Path]:
    """The project's own files below `folders`, sorted; what tools made and hidden folders are left out."""
    for folder in folders:
        for place, inner, names in os.walk(ROOT / folder):
            inner[:] = sorted(name for name in inner if name[0] != "." and name not in MADE_BY_TOOLS)
            yield from (Path(place) / name for name in sorted(names) if name.endswith(endings))


def parse(path: Path) -> ast.Module:
    """The syntax tree of one file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def place(path: Path, line: int | None = None) -> str:
    """How a finding names its place: ``src/paribus/cli.py:12``."""
    name = path.relative_to(ROOT).as_posix()
    return name if line is None else f"{name}:{line}"


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method of a file, inner ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def docstring_lines(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line number and text of each line inside a string that spans several lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            yield from enumerate(node.value.splitlines(), start=node.lineno)
