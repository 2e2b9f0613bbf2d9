"""How an arm answers to the learning rate: the best one, what a wrong one costs, and where training breaks.

    sensitivity = mean over the grid of min(L(lr), 8)  -  min over all tried of min(L(lr), 8)

is the measure of Wortsman et al. 2023 (arXiv:2309.14322) on a grid and in bits per byte: their bound, the
loss at initialisation, is 8 bits here, which is knowing nothing of a byte. A run that diverged counts as 8.
"""

from __future__ import annotations

from collections.abc import Sequence

from .result import Baseline, Sensitivity, TuningPoint

PATH = "optimizer.lr"
KNOWING_NOTHING = 8.0
"""Bits per byte of a uniform guess."""


def failure_bound(baselines: Sequence[Baseline]) -> float:
    """Bits per byte above which training has failed: the weakest trivial baseline's, or a uniform guess's."""
    return min(KNOWING_NOTHING, max((line.bits_per_byte for line in baselines), default=KNOWING_NOTHING))


def sensitivity(points: Sequence[TuningPoint], grid: Sequence[float], bound: float) -> Sensitivity:
    """The numbers of one arm; at each learning rate the best of the other tuned values counts.

    Args:
        points: all that was tried.
        grid: the learning rates to begin with; values added at an edge do not enter the mean, as arms differ there.
        bound: what `failure_bound` says.
    """
    scores: dict[float, float | None] = {}
    for point in points:
        known = [score for score in (scores.get(point.values[PATH]), point.bits_per_byte) if score is not None]
        scores[point.values[PATH]] = min(known, default=None)
    finished = {lr: score for lr, score in scores.items() if score is not None}
    best = min(finished, key=lambda lr: finished[lr], default=None)
    failed = [lr for lr, score in scores.items() if (best is None or lr > best) and (score is None or score > bound)]
    return Sensitivity(
        best=best,
        excess=None if best is None else _mean_excess([scores[lr] for lr in grid], finished[best]),
        grid=tuple(grid),
        threshold=min(failed, default=None),
        largest=max(scores),
        bound=bound,
    )


def _mean_excess(scores: Sequence[float | None], best: float) -> float:
    counted = [KNOWING_NOTHING if score is None else min(score, KNOWING_NOTHING) for score in scores]
    return sum(counted) / len(counted) - min(best, KNOWING_NOTHING)


def sentence(found: Sensitivity) -> str:
    """``best optimizer.lr 0.003, sensitivity 0.2100 bits per byte over 0.001 to 0.009, breaks at 0.03``"""
    best = "no tried value ended" if found.best is None else f"best {PATH} {found.best:g}"
    excess = "" if found.excess is None else f", sensitivity {found.excess:.4f} bits per byte over {_span(found.grid)}"
    return f"{best}{excess}, {broken(found)}"


def broken(found: Sensitivity) -> str:
    """``breaks at 0.03``, or how far nothing broke."""
    return f"holds up to {found.largest:g}" if found.threshold is None else f"breaks at {found.threshold:g}"


def _span(grid: Sequence[float]) -> str:
    low, high = min(grid), max(grid)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
