"""Names that transformers gives a meaning of its own stay out of models and their configuration.

On loading, transformers renames parameters called ``gamma`` or ``beta``; of a configuration it drops
generation parameters such as ``max_length``, and reads ``layer_types`` and its like as settings of its own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.structure.sources import PACKAGE, functions, parse, place

RENAMED = re.compile("gamma|beta")
TAKEN = {"max_length", "layer_types", "per_layer_config", "rope_parameters"}
NN = sorted((PACKAGE / "nn").rglob("*.py"))


def self_attributes(tree: ast.AST) -> Iterator[tuple[str, ast.expr | None, int]]:
    """Name, value and line of each assignment to an attribute of ``self``."""
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            own = isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
            if own and target.value.id == "self":
                yield target.attr, node.value, node.lineno


def renamed_parameters(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and name of the parameters, buffers and modules that loading would rename."""
    names = [(line, name) for name, value, line in self_attributes(tree) if value and makes_object(value)]
    for node in ast.walk(tree):
        registers = isinstance(node, ast.Call) and getattr(node.func, "attr", "").startswith("register_")
        if registers and node.args and isinstance(node.args[0], ast.Constant):
            names.append((node.lineno, str(node.args[0].value)))
    return [(line, name) for line, name in names if RENAMED.search(name)]


def makes_object(value: ast.expr) -> bool:
    """Whether an expression calls a class, as ``nn.Parameter(...)`` does; ``torch.rand(...)`` is no class."""
    calls = (node for node in ast.walk(value) if isinstance(node, ast.Call))
    callees = (getattr(call.func, "attr", getattr(call.func, "id", "")) for call in calls)
    return any(name[:1].isupper() for name in callees)


def taken_fields(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and name of configuration fields that transformers gives another meaning."""
    fields = [(line, name) for name, _, line in self_attributes(tree)]
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields.append((node.lineno, node.target.id))
    for function in functions(tree):
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        fields += [(function.lineno, argument.arg) for argument in arguments]
    return [(line, name) for line, name in fields if name in TAKEN]


@pytest.mark.parametrize("path", NN, ids=place)
def test_no_parameter_is_renamed_on_loading(path: Path) -> None:
    found = renamed_parameters(parse(path))
    assert not found, "\n".join(f"{place(path, line)}: {name} would be renamed" for line, name in found)


def test_the_configuration_takes_no_name_of_transformers() -> None:
    path = PACKAGE / "nn" / "config.py"
    found = taken_fields(parse(path))
    assert not found, "\n".join(f"{place(path, line)}: {name} is taken" for line, name in found)


@pytest.mark.parametrize(
    "statement",
    [
        "self.gamma = nn.Parameter(x)",
        "self.to_beta: nn.Linear = nn.Linear(2, 2)",
        "self.beta_layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])",
        "self.register_buffer('gamma', x)",
    ],
)
def test_the_parameter_check_can_fail(statement: str) -> None:
    assert renamed_parameters(ast.parse(f"def f(self):\n  {statement}"))


def test_the_parameter_check_lets_numbers_pass() -> None:
    assert not renamed_parameters(ast.parse("self.beta = 0.9\nself.write = nn.Linear(2, 2)"))


@pytest.mark.parametrize(
    "source",
    ["layer_types: list", "def f(self, *, max_length=1): ...", "self.layer_types = 1"],
)
def test_the_configuration_check_can_fail(source: str) -> None:
    assert taken_fields(ast.parse(source))
    harmless = source.replace("max_length", "length").replace("layer_types", "layout")
    assert not taken_fields(ast.parse(harmless))
