"""Components named in a config: ``{"name": "gla", "preset": ..., **settings}`` becomes a module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .channel import Channel
from .mixer import Mixer, Placement
from .registry import Registry
from .settings import nearest, read_settings

_PACKAGE = __name__.rpartition(".")[0]
MIXERS = Registry("mixers", _PACKAGE, Path(__file__).parent)
CHANNELS = Registry("channels", _PACKAGE, Path(__file__).parent)


def make_mixer(settings: Mapping[str, Any], placement: Placement, where: str = "mixer") -> Mixer:
    """The token mixer that `settings` name, at `placement`.

    Raises:
        ValueError: unknown mixer, preset or key, or a value the mixer refuses; the message begins with `where`.
    """
    return _make(MIXERS, Mixer, settings, placement, where)


def make_channel(settings: Mapping[str, Any], placement: Placement, where: str = "channel") -> Channel:
    """The channel mixer that `settings` name, at `placement`; errors as in `make_mixer`."""
    return _make(CHANNELS, Channel, settings, placement, where)


def _make(registry: Registry, base: type, settings: Mapping[str, Any], placement: Placement, where: str) -> Any:
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
        return component(placement, read_settings(component.Config, chosen, f"{name}"))
    except ValueError as problem:
        raise ValueError(f"{where}: {problem}") from None
