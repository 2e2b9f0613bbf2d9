"""Grids: the best point, and the wider grid when the best lies at an edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .result import TuningPoint


def best_values(points: Sequence[TuningPoint]) -> dict[str, Any] | None:
    """The values with the lowest score; None when every point diverged."""
    finished = [(point.score, index) for index, point in enumerate(points) if point.score is not None]
    return points[min(finished)[1]].values if finished else None


def extended(grid: Mapping[str, list[Any]], best: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """The grid with one more value beyond each edge at which `best` lies, at the ratio of the last two values.

    Only positive numbers are extended, and only where at least two were tried. With nothing finished, every such
    grid grows downwards: smaller values are what tames a divergence.
    """
    wider = {}
    for path, values in grid.items():
        wider[path] = list(values)
        ordered = sorted(v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and v > 0)
        if len(ordered) < 2 or len(ordered) < len(values):
            continue
        if best is None or best[path] == ordered[0]:
            wider[path].append(_round(ordered[0] ** 2 / ordered[1]))
        elif best[path] == ordered[-1]:
            wider[path].append(_round(ordered[-1] ** 2 / ordered[-2]))
    return wider


def _round(value: float) -> float:
    """Four significant digits: a grid is read by people."""
    return float(f"{value:.4g}")
