"""What `paribus list` and `paribus show` print, made from files, docstrings and measurements."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

_FOLDERS = {
    "mixers": "nn/mixers",
    "channels": "nn/channels",
    "residuals": "nn/residuals",
    "tasks": "nn/tasks",
    "corpora": "data/corpora",
    "images": "data/images/sets",
}


def list_components(kind: str) -> Iterator[tuple[str, str]]:
    """(name, one line) of every component of `kind`; presets follow their component as ``name preset``.

    The kind "settings" is every dotted path that a run file may set and a study may vary, with default and meaning.

    Components that are files are read as text, so that listing takes no time.
    """
    package = Path(__file__).parent
    if kind in _FOLDERS:
        for path in sorted((package / _FOLDERS[kind]).glob("*.py")):
            if not path.stem.startswith("_"):
                tree = ast.parse(path.read_text(encoding="utf-8"))
                yield path.stem, _first_line(ast.get_docstring(tree))
                for preset, settings in _presets(tree).items():
                    yield f"  {preset}", f"{path.stem} with {settings}"
    elif kind == "settings":
        yield from _settings()
    else:
        for name, value in _registered(kind).items():
            yield name, getattr(value, "summary", None) or _first_line(inspect.getdoc(value))


def describe_component(kind: str, name: str, width: int, length: int) -> str:
    """The docstring, the settings with their defaults, and what the component costs at `width` and `length`.

    Args:
        kind: "mixers", "channels" or "residuals".

    Raises:
        ValueError: no such component, or a width it refuses.
    """
    from paribus.nn.component import CHANNELS, MIXERS, RESIDUALS
    from paribus.nn.mixer import Mixer
    from paribus.nn.residual import Residual

    base = Residual if kind == "residuals" else Mixer
    registry = {"mixers": MIXERS, "channels": CHANNELS, "residuals": RESIDUALS}[kind]
    component = registry.component(name, base)
    module = registry.module(name)
    lines = [inspect.getdoc(module) or "", "", "Settings:"]
    lines += [f"  {field.name} = {field.default!r}" for field in dataclasses.fields(component.Config)]
    lines += _module_presets(module)
    measured = _parameters_of_residual(component, width) if base is Residual else _measured(component, width, length)
    lines += ["", f"Measured at width {width}, {length:,} tokens, defaults:"]
    lines += [f"  {label:<24} {value}" for label, value in measured]
    return "\n".join(lines)


def _parameters_of_residual(component: Any, width: int) -> Iterator[tuple[str, str]]:
    from paribus.nn.mixer import Placement

    scheme = component(Placement(width=width), component.Config(), "rms_norm", True)
    yield "parameters", f"{sum(parameter.numel() for parameter in scheme.parameters()):,}, norms included"


def _measured(component: Any, width: int, length: int) -> Iterator[tuple[str, str]]:
    import torch

    from paribus.nn.initialization import initialize
    from paribus.nn.kernels.cost import FlopCounter
    from paribus.nn.mixer import Placement
    from paribus.nn.state import state_bytes

    module = component(Placement(width=width, max_length=length), component.Config())
    initialize(module, seed=0)
    yield "parameters", f"{sum(parameter.numel() for parameter in module.parameters()):,}"
    x = torch.randn(1, length, width)
    with FlopCounter() as forward, torch.no_grad():
        _, state = module(x, keep_state=True)
    yield "FLOPs a token, forward", f"{forward.total / length:,.0f}"
    with FlopCounter() as both:
        y, _ = module(x.requires_grad_() * 1)  # in a model, what enters has a gradient too
        y.square().mean().backward()
    yield "FLOPs a token, training", f"{both.total / length:,.0f}"
    if state is not None:
        yield f"state after {length:,} tokens", f"{state_bytes(state):,} bytes"


_DICTIONARIES = {
    "decays": "nn.decay:DECAYS",
    "features": "nn.features:FEATURES",
    "norms": "nn.norm:NORMS",
    "positions": "nn.position_catalogue:POSITIONS",
    "hybrids": "nn.hybrids:HYBRIDS",
    "initializations": "nn.initialization:INITIALIZATIONS",
    "optimizers": "optim.registry:OPTIMIZERS",
    "schedules": "optim.schedule:SCHEDULES",
}
"""Small registries that are dictionaries in one file, as module:name."""


def _registered(kind: str) -> dict[str, Any]:
    module, _, name = _DICTIONARIES[kind].partition(":")
    return dict(getattr(importlib.import_module(f"paribus.{module}"), name))


def _settings() -> Iterator[tuple[str, str]]:
    from paribus.nn.config import BlockConfig, ParibusConfig
    from paribus.nn.patches import ImageConfig
    from paribus.nn.task import TASKS, TaskModel
    from paribus.training.run import Run
    from paribus.training.task import OBJECTIVES, Task

    yield from _fields(Run, "")
    told = _told_arguments(ParibusConfig)
    for name, parameter in inspect.signature(ParibusConfig.__init__).parameters.items():
        if name not in ("self", "blocks", "transformers_keys"):
            yield f"model.{name}", f"[{parameter.default!r}] {told[name]}"
    yield from _fields(BlockConfig, "model.blocks.NAME.")
    yield from _fields(ImageConfig, "model.image.")
    for name in OBJECTIVES.names():
        for path, told_of in _fields(TASKS.component(name, TaskModel).Config, "model.task."):
            yield path, f"{told_of} ({name})"
        for path, told_of in _fields(OBJECTIVES.component(name, Task).Objective, "objective."):
            yield path, f"{told_of} ({name})"


def _fields(cls: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Every field of a settings dataclass, nested ones in their place, with its default and what it means."""
    hints = typing.get_type_hints(cls)
    told = _told_fields(cls)
    for field in dataclasses.fields(cls):
        nested = list(filter(dataclasses.is_dataclass, typing.get_args(hints[field.name]) or (hints[field.name],)))
        if nested:
            for kind in nested:
                yield from _fields(kind, f"{prefix}{field.name}.")
        elif f"{prefix}{field.name}" != "model":
            default = field.default_factory() if callable(field.default_factory) else field.default
            shown = "" if default is dataclasses.MISSING else f"[{default!r}] "
            yield f"{prefix}{field.name}", f"{shown}{told.get(field.name, '')}".strip()


def _told_fields(cls: type) -> dict[str, str]:
    """Field -> the text that follows it in the source, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef), "the source of a class is one"
    told = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            told[ast.unparse(field.target)] = " ".join(str(after.value.value).split())
    return told


def _told_arguments(cls: type) -> dict[str, str]:
    """Argument -> what the section ``Args`` of the class's docstring says of it, on one line."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(cls) or "", re.MULTILINE | re.DOTALL)
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _presets(tree: ast.Module) -> dict[str, str]:
    """Name -> settings, as they are written in the file."""
    for node in tree.body:
        if (
            isinstance(node, ast.AnnAssign)
            and ast.unparse(node.target) == "PRESETS"
            and isinstance(node.value, ast.Dict)
        ):
            pairs = zip(node.value.keys, node.value.values, strict=True)
            return {ast.literal_eval(key): ast.unparse(value) for key, value in pairs if key is not None}
    return {}


def _module_presets(module: ModuleType) -> list[str]:
    presets = getattr(module, "PRESETS", {})
    return ["", "Presets:", *(f"  {name}: {settings}" for name, settings in presets.items())] if presets else []


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]
