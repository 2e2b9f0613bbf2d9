"""Technical English: docstrings above 200 characters in numpy, scipy, torch, transformers, one a document."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator

from ..source import EmbeddedCorpus, read, spread

MIN_CHARACTERS = 200
LEFT_OUT = {"test", "tests", "testing"}
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Docstrings(EmbeddedCorpus):
    """Technical English: docstrings of numpy, scipy, torch and transformers."""

    licence = "BSD-3-Clause (numpy, scipy, torch), Apache-2.0 (transformers)"
    packages = {name: name for name in ("numpy", "scipy", "torch", "transformers")}
    max_bytes = 5_000_000  # parsing takes about 3 seconds for each million

    def documents(self) -> Iterator[str]:
        for path in spread(self.folders(), "*.py", without=LEFT_OUT):
            source = read(path)
            # Parsing is slow, and a docstring this long is hardly ever written without triple quotes.
            if '"""' in source:
                yield from (text for text in docstrings(source) if len(text) > MIN_CHARACTERS)


def docstrings(source: str) -> list[str]:
    """The docstrings of a module, its classes and functions; none if this interpreter cannot parse it."""
    try:
        with warnings.catch_warnings(action="ignore"):
            module = ast.parse(source)
    except SyntaxError:
        return []
    return [text for node in _documented(module) if (text := ast.get_docstring(node))]


def _documented(node: ast.AST) -> Iterator[Documented]:
    """What can have a docstring, found by walking statements only: expressions are nine tenths of a tree."""
    if isinstance(node, Documented):
        yield node
    for field in ("body", "orelse", "handlers", "finalbody"):
        for inner in getattr(node, field, ()):
            yield from _documented(inner)
