"""Functions and files stay small enough to be read in one piece."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.structure.sources import WRITTEN, files, functions, parse, place

FUNCTION_LINES = 60
FILE_LINES = 400


def long_functions(tree: ast.AST) -> list[tuple[int, str, int]]:
    """Line, name and length of each function over the limit; its docstring counts."""
    lengths = ((node, node.end_lineno - node.lineno + 1) for node in functions(tree))
    return [(node.lineno, node.name, length) for node, length in lengths if length > FUNCTION_LINES]


def is_long(path: Path) -> bool:
    """Whether a file has more lines than the limit."""
    return len(path.read_text(encoding="utf-8").splitlines()) > FILE_LINES


def test_functions_are_short() -> None:
    found = [
        f"{place(path, line)}: {name} has {length} lines"
        for path in files(*WRITTEN)
        for line, name, length in long_functions(parse(path))
    ]
    assert not found, f"more than {FUNCTION_LINES} lines:\n" + "\n".join(found)


def test_files_are_short() -> None:
    found = [place(path) for path in files(*WRITTEN) if is_long(path)]
    assert not found, f"more than {FILE_LINES} lines:\n" + "\n".join(found)


def test_the_checks_can_fail(tmp_path: Path) -> None:
    body = "    pass\n"
    assert not long_functions(ast.parse("def f():\n" + body * (FUNCTION_LINES - 1)))
    assert long_functions(ast.parse("class A:\n  async def f():\n" + body * FUNCTION_LINES)) == [
        (2, "f", FUNCTION_LINES + 1)
    ]
    path = tmp_path / "a.py"
    path.write_text("\n" * FILE_LINES)
    assert not is_long(path)
    path.write_text("\n" * (FILE_LINES + 1))
    assert is_long(path)
