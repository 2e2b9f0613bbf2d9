"""The statistics of a verdict: pure functions of numbers that are lower when better.

Seeds are the unit of inference. Arms share data and initialisation seed by seed, so differences are paired:
with ``d_s = other_s - reference_s`` over ``n`` seeds, mean ``m`` and standard deviation ``s`` (over
``n - 1``), Student's interval is ``m ± t(1 - α/2, n - 1) · s / √n`` (Student 1908, "The probable error of a
mean"). What the test documents contribute to the uncertainty is a question of its own for the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

Interval = tuple[float, float]
Outcome = Literal["better", "worse", "no difference shown", "inconclusive", "diverged"]
POWER = 0.8
ROUNDING = 1e-12
"""Spread below this share of the values is the rounding of a subtraction, not a spread."""


@dataclass(frozen=True)
class Paired:
    """The differences (other minus reference) over the seeds that two arms share.

    Without a common seed everything is None; with a single one, everything but the difference.

    Attributes:
        difference: mean difference; negative is better.
        deviation: standard deviation of the differences.
        interval: t interval of the mean difference.
        p_value: two-sided p value of the paired t test.
        smallest_detectable_effect: see the function of that name.
    """

    seeds: int
    confidence: float
    difference: float | None = None
    deviation: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    smallest_detectable_effect: float | None = None


class Decision(NamedTuple):
    """An outcome, and the sentence that says why."""

    outcome: Outcome
    reason: str


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, Interval | None]:
    """Mean and t interval of one arm's seeds; a single seed has no interval.

    Raises:
        ValueError: no value, a value that is not finite, or a confidence outside (0, 1).
    """
    x = _finite(values, "values of an arm")
    _check_confidence(confidence)
    mean = float(x.mean())
    return mean, None if len(x) == 1 else _t_interval(mean, _deviation(x), len(x), confidence)


def paired_difference(
    reference: Mapping[int, float],
    other: Mapping[int, float],
    confidence: float = 0.95,
    comparisons: int = 1,
) -> Paired:
    """Compare two arms over the seeds that both have.

    Args:
        reference: metric by seed; lower is better.
        comparisons: how many arms the study compares, which the smallest detectable effect allows for.

    Raises:
        ValueError: a value that is not finite, or a confidence outside (0, 1).
    """
    _check_confidence(confidence)
    common = sorted(reference.keys() & other.keys())
    if not common:
        return Paired(0, confidence)
    before = _finite([reference[seed] for seed in common], "common seeds of two arms")
    after = _finite([other[seed] for seed in common], "common seeds of two arms")
    n, difference = len(common), float((after - before).mean())
    if n == 1:
        return Paired(n, confidence, difference)
    deviation = _deviation(after - before, scale=max(np.abs(before).max(), np.abs(after).max()))
    return Paired(
        seeds=n,
        confidence=confidence,
        difference=difference,
        deviation=deviation,
        interval=_t_interval(difference, deviation, n, confidence),
        p_value=_t_test(difference, deviation, n),
        smallest_detectable_effect=smallest_detectable_effect(deviation, n, (1 - confidence) / comparisons),
    )


def _t_interval(mean: float, deviation: float, n: int, confidence: float) -> Interval:
    half_width = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * deviation / math.sqrt(n)
    return mean - half_width, mean + half_width


def _t_test(mean: float, deviation: float, n: int) -> float:
    """Two-sided p value of a mean against zero; without any spread it is certain either way."""
    if deviation == 0:
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(abs(mean) / (deviation / math.sqrt(n)), n - 1))


def smallest_detectable_effect(deviation: float, seeds: int, alpha: float = 0.05, power: float = POWER) -> float:
    """The true difference that a paired two-sided t test at level `alpha` shows with probability `power`.

    Under a true difference δ the statistic has a noncentral t distribution with noncentrality
    ``λ = δ √n / s`` (Cohen 1988, "Statistical power analysis", 2.2), so δ is ``λ s / √n`` with λ from
    ``P(T(n - 1, λ) > t(1 - α/2, n - 1)) = power``. The other tail adds less than 1e-5 at a power of 0.8.
    """
    critical = stats.t.ppf(1 - alpha / 2, seeds - 1)
    return float(special.nctdtrinc(seeds - 1, 1 - power, critical)) * deviation / math.sqrt(seeds)


def bootstrap_over_documents(
    costs_a: ArrayLike,
    costs_b: ArrayLike,
    weights: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Percentile interval of the difference (b minus a) in cost by weight when documents (or images) are drawn again.

    A resample draws as many documents as there are, with replacement, the same ones for both models, and its
    difference is ``(Σ costs_b - Σ costs_a) / Σ weights`` (Efron & Tibshirani 1993, "An introduction to the
    bootstrap", chapter 13).

    Args:
        costs_a: [documents] what the first model pays for each document, such as bits.
        costs_b: [documents] the same for the second model.
        weights: [documents] what each document counts, such as its bytes.

    Returns:
        None for a single document, which says nothing of the spread between documents.

    Raises:
        ValueError: lengths that differ, no document, or a document without weight.
    """
    _check_confidence(confidence)
    a, b, size = (_finite(x, "evaluation documents") for x in (costs_a, costs_b, weights))
    if not len(a) == len(b) == len(size):
        raise ValueError(f"costs and weights are of {len(a)}, {len(b)} and {len(size)} documents; they must agree")
    if size.min() <= 0:
        raise ValueError(f"an evaluation document weighs {size.min():g}; more than 0 is needed")
    if len(size) == 1:
        return None
    draws = np.random.default_rng(seed)
    difference = b - a
    ratios = np.empty(resamples)
    for i in range(resamples):
        drawn = draws.integers(len(size), size=len(size))
        ratios[i] = difference[drawn].sum() / size[drawn].sum()
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p values that keep the chance of any false finding among all arms at the level (Holm 1979)."""
    adjusted, running = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def verdict(paired: Paired, adjusted_p_value: float | None, smallest_effect_of_interest: float) -> Decision:
    """What a comparison of two arms has shown, at the level 1 - confidence.

    Better or worse: the adjusted p value is below the level. No difference shown: the whole interval lies
    within plus or minus the smallest effect of interest. All else is inconclusive, and so is a single seed.
    """
    if paired.difference is None:
        return Decision("inconclusive", "No seed finished in both arms.")
    if paired.interval is None or adjusted_p_value is None:
        return Decision("inconclusive", "One seed says nothing about the spread between seeds; it takes two.")
    if paired.deviation == 0 and paired.difference != 0:
        return Decision("inconclusive", "All seeds give the very same difference: these runs are not independent.")
    effect, interest = abs(paired.difference), smallest_effect_of_interest
    low, high = paired.interval
    seeds = f"{paired.seeds} seeds"
    p = f"Holm-adjusted p {_p(adjusted_p_value)}"
    within = f"±{interest:g}, the smallest effect of interest"
    if adjusted_p_value < 1 - paired.confidence:
        small = f"; but this is within {within}" if effect < interest else ""
        if paired.difference < 0:
            return Decision("better", f"Lower by {effect:.4f} over {seeds}, {p}{small}.")
        return Decision("worse", f"Higher by {effect:.4f} over {seeds}, {p}{small}.")
    if -interest <= low and high <= interest:
        level = f"{100 * paired.confidence:g} %"
        return Decision("no difference shown", f"The whole {level} interval lies within {within}.")
    detectable = f"{seeds} would likely show a difference of {paired.smallest_detectable_effect:.4f} or more"
    return Decision("inconclusive", f"{p}, but the interval reaches beyond {within}; {detectable}.")


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"= {value:.2g}"


def _deviation(x: np.ndarray, scale: float | None = None) -> float:
    """Sample standard deviation; exactly zero where the spread is only rounding beside `scale`."""
    deviation = float(x.std(ddof=1))
    return 0.0 if deviation <= ROUNDING * (np.abs(x).max() if scale is None else scale) else deviation


def _finite(values: ArrayLike, what: str) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(x) == 0:
        raise ValueError(f"there are no {what}; at least one is needed")
    if not np.isfinite(x).all():
        raise ValueError(f"the {what} hold a value that is not finite: {x[~np.isfinite(x)][0]}")
    return x


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
