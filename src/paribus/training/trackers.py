"""Experiment trackers through Accelerate: the journal's numbers, shown elsewhere as well. Off unless asked for.

The journal stays the record. A tracker gets ``loss``, ``lr``, ``gradient_norm`` and ``score`` by step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from paribus.nn.settings import nearest

from .run import Run

_SHOWN = {"loss", "lr", "gradient_norm", "score"}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse what cannot track.

    Raises:
        ValueError: a tracker that Accelerate does not know, or whose package is not installed.
    """
    installed = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"unknown tracker '{name}'; {nearest(name, LOGGER_TYPE_TO_CLASS)}")
        if name not in installed:
            raise ValueError(f"tracker '{name}' is not installed; run: pip install {name.replace('_', '-')}")


@contextmanager
def tracking(accelerator: Accelerator, run: Run) -> Iterator[None]:
    """Begin and end what the trackers of `accelerator` call a run."""
    if not accelerator.log_with:
        yield
        return
    accelerator.init_trackers(run.name, config=_leaves(run.to_json()))
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def track(accelerator: Accelerator, step: int, facts: Mapping[str, Any]) -> None:
    """Hand the numbers of one event of the journal on."""
    if accelerator.log_with:
        accelerator.log({name: value for name, value in facts.items() if name in _SHOWN}, step=step)


def _leaves(settings: Any, path: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings as ``optimizer.lr`` and so on; what is absent is left out."""
    if isinstance(settings, dict):
        found: dict[str, bool | int | float | str] = {}
        for key, value in settings.items():
            found |= _leaves(value, f"{path}.{key}" if path else str(key))
        return found
    if settings is None:
        return {}
    return {path: settings if isinstance(settings, bool | int | float | str) else str(settings)}
