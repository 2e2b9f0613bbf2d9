"""What `paribus list` and `paribus show` print, made from files, docstrings and measurements."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

_FOLDERS = {"mixers": "nn/mixers", "channels": "nn/channels", "residuals": "nn/residuals", "corpora": "data/corpora"}


def list_components(kind: str) -> Iterator[tuple[str, str]]:
    """(name, one line) of every component of `kind`; presets follow their component as ``name preset``.

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
    else:
        for name, value in _registered(kind).items():
            yield name, _first_line(inspect.getdoc(value))


def describe_component(kind: str, name: str, width: int, length: int) -> str:
    """The docstring, the settings with their defaults, and what the component costs at `width` and `length`.

    Raises:
        ValueError: no such component, or a width it refuses.
    """
    from paribus.nn.component import CHANNELS, MIXERS
    from paribus.nn.mixer import Mixer

    registry = MIXERS if kind == "mixers" else CHANNELS
    component = registry.component(name, Mixer)
    module = registry.module(name)
    lines = [inspect.getdoc(module) or "", "", "Settings:"]
    lines += [f"  {field.name} = {field.default!r}" for field in dataclasses.fields(component.Config)]
    lines += _module_presets(module)
    lines += ["", f"Measured at width {width}, {length:,} tokens, defaults:"]
    lines += [f"  {label:<24} {value}" for label, value in _measured(component, width, length)]
    return "\n".join(lines)


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
    yield f"state after {length:,} tokens", f"{state_bytes(state):,} bytes"


def _registered(kind: str) -> dict[str, Any]:
    """Small registries that are dictionaries in one file."""
    if kind == "decays":
        from paribus.nn.decay import DECAYS

        return dict(DECAYS)
    if kind == "features":
        from paribus.nn.features import FEATURES

        return dict(FEATURES)
    if kind == "norms":
        from paribus.nn.norm import NORMS

        return dict(NORMS)
    if kind == "hybrids":
        from paribus.nn.hybrids import HYBRIDS

        return dict(HYBRIDS)
    from paribus.nn.initialization import INITIALIZATIONS

    return dict(INITIALIZATIONS)


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
