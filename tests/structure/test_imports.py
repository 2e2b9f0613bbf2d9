"""Who may import whom; and in ``paribus.nn``, what a published checkpoint can carry.

transformers finds the code of a checkpoint by two regular expressions over the text of one flat folder, and
demands every package that is imported anywhere but inside a ``try``. Hence the narrow rules for ``nn``.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.structure.sources import PACKAGE, ROOT, docstring_lines, files, parse, place

# Each layer may import itself and what stands above it; data and optim stand side by side.
ORDER = (
    ("nn",),
    ("data", "optim"),
    ("evaluation",),
    ("training",),
    ("publish",),
    ("studies",),
    ("benchmarks",),
    ("catalogue",),
    ("cli",),
)
NN_PACKAGES = {"torch", "transformers"}
SCANNED = re.compile(r"\s*(?:import\s+\.\S+\s*$|from\s+\.\S*\s+import\b)")

Import = tuple[int, str]


def imports(tree: ast.AST, module: str = "paribus.any.any", package: bool = False) -> Iterator[Import]:
    """Line and absolute name of everything that the file of `module` imports, wherever in the file.

    Args:
        package: whether the file is the ``__init__.py`` of `module`; relative names then start one deeper.
    """
    parts = module.split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{name.name}") for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level + package]
            source = ".".join(above + ([node.module] if node.module else []))
            yield from ((node.lineno, f"{source}.{name.name}") for name in node.names)


def layer_faults(tree: ast.AST, module: str, package: bool = False) -> list[Import]:
    """The imports of `module` that its layer does not allow; the package's own files may import all."""
    layer = module.split(".")[1] if "." in module else "__main__"
    rank = next((rank for rank, names in enumerate(ORDER) if layer in names), None)
    if rank is None and layer != "__main__":
        raise ValueError(f"'{layer}' has no place in the order of layers: {ORDER}")
    refused = {name for names in ORDER[rank:] for name in names} - {layer} if rank is not None else set()
    ours = ((line, name) for line, name in imports(tree, module, package) if name.startswith("paribus."))
    return [(line, name) for line, name in ours if name.split(".")[1] in refused]


def lines_inside(tree: ast.Module, *kinds: type[ast.stmt]) -> set[int]:
    """The lines of all imports anywhere inside the top-level statements of these kinds."""
    outer = [node for node in tree.body if isinstance(node, kinds)]
    return {line for node in outer for line, _ in imports(node)}


def foreign(tree: ast.Module, allowed: set[str]) -> list[Import]:
    """Imports of packages that are neither ours, nor the standard library's, nor `allowed`."""
    known = allowed | {"paribus"} | sys.stdlib_module_names
    return [(line, name) for line, name in imports(tree) if name.split(".")[0] not in known]


def shape_faults(tree: ast.Module) -> list[Import]:
    """Imports in ``nn`` of a form that publishing cannot rewrite, and strings that look like one."""
    found = []
    for node in ast.walk(tree):
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        if relative and (node.module is None or node.level > 2):
            found.append((node.lineno, "write 'from .x import y' or 'from ..x import y'"))
        if isinstance(node, ast.Import | ast.ImportFrom) and not relative and "paribus" in packages(node):
            found.append((node.lineno, "import from paribus by relative names"))
    scanned = [(line, text.strip()) for line, text in docstring_lines(tree) if SCANNED.match(text)]
    return found + [(line, f"the loader takes the text '{text}' for an import") for line, text in scanned]


def module_name(path: Path) -> str:
    """``paribus.nn.mixers.gla`` for the file of that module."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def core_packages() -> set[str]:
    """The names under which the project's required dependencies are imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in project["dependencies"]}


def packages(tree: ast.AST) -> set[str]:
    """The packages that a file imports from anywhere else."""
    return {name.split(".")[0] for _, name in imports(tree)}


def report(path: Path, found: list[Import]) -> str:
    return "\n".join(f"{place(path, line)}: {name}" for line, name in found)


@pytest.mark.parametrize("path", list(files(PACKAGE)), ids=place)
def test_layers(path: Path) -> None:
    found = layer_faults(parse(path), module_name(path), path.name == "__init__.py")
    assert not found, report(path, found)


@pytest.mark.parametrize("path", list(files(PACKAGE)), ids=place)
def test_no_import_needs_an_extra(path: Path) -> None:
    tree = parse(path)
    later = lines_inside(tree, ast.Try, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [(line, name) for line, name in foreign(tree, core_packages()) if line not in later]
    assert not found, report(path, found)


@pytest.mark.parametrize("path", list(files(PACKAGE / "nn")), ids=place)
def test_nn_can_be_published(path: Path) -> None:
    tree = parse(path)
    optional = lines_inside(tree, ast.Try) if path.parent.name == "kernels" else set()
    alien = [(line, name) for line, name in foreign(tree, NN_PACKAGES) if line not in optional]
    found = alien + shape_faults(tree)
    assert not found, report(path, found)


def test_fla_is_imported_in_one_file() -> None:
    users = [place(path) for path in files(PACKAGE) if "fla" in packages(parse(path))]
    assert len(users) <= 1, users


def test_the_library_imports_no_study() -> None:
    outside = {"studies", "tests", "benchmarks"}
    users = [place(path) for path in files(PACKAGE) if packages(parse(path)) & outside]
    assert not users, users


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("paribus.nn.block", "from paribus.training.run import Run"),
        ("paribus.nn.block", "from ..data import text"),
        ("paribus.data.text", "from paribus import optim"),
        ("paribus.optim.adamw", "def f():\n  import paribus.data.text"),
        ("paribus.training.loop", "from ..studies.audit import audit"),
    ],
)
def test_the_layer_check_can_fail(module: str, line: str) -> None:
    assert layer_faults(ast.parse(line), module)


def test_the_layer_check_lets_lower_layers_pass() -> None:
    tree = ast.parse("from ..nn.config import C\nfrom .loop import train\nimport paribus.data.text")
    assert not layer_faults(tree, "paribus.training.run")
    with pytest.raises(ValueError, match="no place"):
        layer_faults(tree, "paribus.elsewhere.run")


@pytest.mark.parametrize(
    "source",
    [
        "from . import mixers",
        "from ...x import y",
        "from paribus.nn.mixer import Mixer",
        'def f():\n  """A.\n\n  from .x import y\n  """',
        'x = """\nimport .x\n"""',
    ],
)
def test_the_shape_check_can_fail(source: str) -> None:
    assert shape_faults(ast.parse(source))


def test_the_package_check_can_fail() -> None:
    source = "import torch.nn\ndef f():\n  import einops\ntry:\n  import fla\nexcept ImportError:\n  fla = None"
    tree = ast.parse(source + "\nfrom . import x\nfrom .y import z")
    assert foreign(tree, NN_PACKAGES) == [(3, "einops"), (5, "fla")]
    assert lines_inside(tree, ast.Try) == {5}
    assert packages(tree) >= {"einops", "fla"}


def test_the_shape_check_lets_good_forms_pass() -> None:
    assert not shape_faults(ast.parse('"""From .x, import y."""\nfrom .x import y\nfrom ..kernels.delta import z'))
