"""Components named in a config: ``{"name": "gla", "preset": ..., **settings}`` becomes a module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .mixer import Mixer, Placement
from .registry import Registry
from .residual import Residual
from .settings import nearest, read_settings

_PACKAGE = __name__.rpartition(".")[0]
MIXERS = Registry("mixers", _PACKAGE, Path(__file__).parent)
CHANNELS = Registry("channels", _PACKAGE, Path(__file__).parent)
RESIDUALS = Registry("residuals", _PACKAGE, Path(__file__).parent)


def make_mixer(settings: Mapping[str, Any], placement: Placement, where: str = "mixer") -> Mixer:
    """The token mixer that `settings` name, at `placement`.

    Raises:
        ValueError: unknown mixer, preset or key, or a value the mixer refuses; the message begins with `where`.
    """
    return _make(MIXERS, Mixer, settings, placement, where)


def make_channel(settings: Mapping[str, Any], placement: Placement, where: str = "channel") -> Mixer:
    """The channel mixer that `settings` name, at `placement`; errors as in `make_mixer`."""
    return _make(CHANNELS, Mixer, settings, placement, where)


def make_residual(
    settings: Mapping[str, Any], placement: Placement, norm: str, has_channel: bool, where: str = "residual"
) -> Residual:
    """The residual scheme that `settings` name, at `placement`, with norms called `norm`; errors as in `make_mixer`."""
    return _make(RESIDUALS, Residual, settings, placement, where, norm, has_channel)


def _make(
    registry: Registry, base: type, settings: Mapping[str, Any], placement: Placement, where: str, *more: Any
) -> Any:
    chosen = dict(settings)
    name = chosen.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"{where}: 'name' is missing; {nearest('', registry.names())}")
    try:
        component = registry.component(name, base)
        preset = chosen.pop("preset", None)
        if preset is not None:
            presets = getattr(registry.module(name), "PRESETS", {})
            if preset not in presets:
                raise ValueError(f"unknown preset '{preset}' of '{name}'; {nearest(str(preset), presets)}")
            chosen = {**presets[preset], **chosen}
        return component(placement, read_settings(component.Config, chosen, f"{name}"), *more)
    except ValueError as problem:
        raise ValueError(f"{where}: {problem}") from None
