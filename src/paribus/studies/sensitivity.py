"""How an arm answers to the learning rate: the best one, what a wrong one costs, and where training breaks.

    sensitivity = mean over the grid of min(L(lr), c)  -  min over all tried of min(L(lr), c)

is the measure of Wortsman et al. 2023 (arXiv:2309.14322) on a grid and in the metric that tuned the arm. Their bound is
the loss at initialisation; c is what knowing nothing gives in the metric (8 bits of a byte, all images wrong), or else
the weakest trivial baseline. A run that diverged counts as c.
"""

from __future__ import annotations

from collections.abc import Sequence

from paribus.evaluation.metrics import METRICS

from .result import Baseline, Sensitivity, TuningPoint

PATH = "optimizer.lr"


def failure_bounds(metric: str, baselines: Sequence[Baseline]) -> tuple[float | None, float | None]:
    """Where training has failed, and what failure counts as, in `metric`; None where nothing tells.

    The first is the weakest of the trivial baselines that are of the metric, the second what knowing nothing gives;
    each stands in for the other where that is not known, and the first is never the higher.
    """
    weakest = max((line.score for line in baselines if line.metric == metric), default=None)
    ceiling = METRICS[metric].knowing_nothing
    if weakest is None or ceiling is None:
        known = ceiling if weakest is None else weakest
        return known, known
    return min(ceiling, weakest), ceiling


def sensitivity(
    points: Sequence[TuningPoint], grid: Sequence[float], bound: float | None, ceiling: float | None
) -> Sensitivity:
    """The numbers of one arm; at each learning rate the best of the other tuned values counts.

    Args:
        points: all that was tried.
        grid: the learning rates to begin with; values added at an edge do not enter the mean, as arms differ there.
        bound: the first number of `failure_bounds`.
        ceiling: the second.
    """
    scores: dict[float, float | None] = {}
    for point in points:
        known = [score for score in (scores.get(point.values[PATH]), point.score) if score is not None]
        scores[point.values[PATH]] = min(known, default=None)
    finished = {lr: score for lr, score in scores.items() if score is not None}
    best = min(finished, key=lambda lr: finished[lr], default=None)
    failed = [lr for lr, score in scores.items() if (best is None or lr > best) and _failed(score, bound)]
    excess = None
    if best is not None:
        top = max(finished.values()) if ceiling is None else ceiling
        counted = [top if score is None else min(score, top) for score in (scores[lr] for lr in grid)]
        excess = sum(counted) / len(counted) - min(finished[best], top)
    return Sensitivity(
        best=best,
        excess=excess,
        grid=tuple(grid),
        threshold=min(failed, default=None),
        largest=max(scores),
        bound=bound,
        ceiling=ceiling,
    )


def _failed(score: float | None, bound: float | None) -> bool:
    return score is None or (bound is not None and score > bound)


def sentence(found: Sensitivity, metric: str) -> str:
    """``best optimizer.lr 0.003, sensitivity 0.2100 bits per byte over 0.001 to 0.009, breaks at 0.03``"""
    best = "no tried value ended" if found.best is None else f"best {PATH} {found.best:g}"
    title = METRICS[metric].title
    excess = "" if found.excess is None else f", sensitivity {found.excess:.4f} {title} over {_span(found.grid)}"
    return f"{best}{excess}, {broken(found)}"


def broken(found: Sensitivity) -> str:
    """``breaks at 0.03``, or how far nothing broke."""
    return f"holds up to {found.largest:g}" if found.threshold is None else f"breaks at {found.threshold:g}"


def _span(grid: Sequence[float]) -> str:
    low, high = min(grid), max(grid)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
