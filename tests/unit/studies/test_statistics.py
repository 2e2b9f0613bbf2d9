"""The statistics of a verdict against scipy, closed forms and simulation; degenerate input stays finite."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import integrate, stats

from paribus.studies.statistics import (
    Outcome,
    Paired,
    bootstrap_over_documents,
    holm,
    mean_interval,
    paired_difference,
    smallest_detectable_effect,
    verdict,
)

REFERENCE = {1: 2.10, 2: 2.14, 3: 2.07, 4: 2.12}
OTHER = {1: 2.05, 2: 2.12, 3: 2.03, 4: 2.05, 9: 1.0}


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def paired(difference: float, half_width: float) -> Paired:
    """A comparison over three seeds with a given t interval."""
    return Paired(3, 0.95, difference, 0.01, (difference - half_width, difference + half_width), 0.5, 0.05)


def test_paired_difference_agrees_with_scipy() -> None:
    found = paired_difference(REFERENCE, OTHER, confidence=0.9)
    oracle = stats.ttest_rel([OTHER[seed] for seed in REFERENCE], list(REFERENCE.values()))
    assert found.seeds == 4
    assert found.difference == pytest.approx(-0.045)
    assert found.p_value == pytest.approx(oracle.pvalue)
    assert found.interval == pytest.approx(tuple(oracle.confidence_interval(0.9)))


def test_two_seeds_have_the_closed_form_of_cauchy() -> None:
    found = paired_difference(seeds(0.0, 0.0), seeds(1.0, 3.0))
    assert found.deviation == pytest.approx(math.sqrt(2))
    assert found.p_value == pytest.approx(1 - 2 / math.pi * math.atan(2))
    half_width = math.tan(math.pi * 0.475)
    assert found.interval == pytest.approx((2 - half_width, 2 + half_width))


def test_mean_interval_agrees_with_scipy() -> None:
    values = np.array([1.9, 2.3, 2.2])
    mean, interval = mean_interval(values, 0.99)
    assert mean == pytest.approx(values.mean())
    assert interval == pytest.approx(stats.t.interval(0.99, 2, values.mean(), stats.sem(values)))


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_interval_covers_as_often_as_it_says(n: int) -> None:
    draws = np.random.default_rng(0).normal(5.0, 2.0, size=(4000, n))
    intervals = [mean_interval(row, 0.9)[1] for row in draws]
    assert np.mean([low <= 5.0 <= high for low, high in intervals]) == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize(("n", "alpha"), [(2, 0.05), (3, 0.05), (3, 0.01), (20, 0.05)])
def test_the_smallest_detectable_effect_has_the_power_it_says(n: int, alpha: float) -> None:
    effect = smallest_detectable_effect(2.0, n, alpha)
    draws = np.random.default_rng(1).normal(effect, 2.0, size=(40_000, n))
    shown = stats.ttest_1samp(draws, 0.0, axis=1).pvalue < alpha
    assert shown.mean() == pytest.approx(0.8, abs=0.01)


def test_the_smallest_detectable_effect_by_direct_integration() -> None:
    """P(T > c) for noncentral T, integrating the normal over the distribution of the deviation."""
    df, critical = 4, stats.t.ppf(0.975, 4)
    noncentrality = smallest_detectable_effect(1.0, 5) * math.sqrt(5)
    density = stats.chi2(df).pdf
    power, _ = integrate.quad(lambda x: density(x) * stats.norm.sf(critical * math.sqrt(x / df) - noncentrality), 0, 80)
    assert power == pytest.approx(0.8, abs=1e-6)


def test_more_comparisons_need_a_larger_effect() -> None:
    alone, among_four = (paired_difference(REFERENCE, OTHER, comparisons=n) for n in (1, 4))
    assert among_four.smallest_detectable_effect > alone.smallest_detectable_effect
    assert among_four.interval == alone.interval


def test_bootstrap_is_seeded_paired_and_weighs_by_bytes() -> None:
    draws = np.random.default_rng(2)
    num_bytes = draws.integers(50, 5000, size=200)
    bits_a = num_bytes * draws.normal(2.0, 0.5, size=200)
    bits_b = bits_a - 0.1 * num_bytes
    low, high = bootstrap_over_documents(bits_a, bits_b, num_bytes)
    assert (low, high) == pytest.approx((-0.1, -0.1)), "paired: what documents share cancels"
    noisy = bits_b + num_bytes * draws.normal(0, 0.2, size=200)
    first = bootstrap_over_documents(bits_a, noisy, num_bytes, seed=3)
    assert first == bootstrap_over_documents(bits_a, noisy, num_bytes, seed=3)
    assert first != bootstrap_over_documents(bits_a, noisy, num_bytes, seed=4)
    assert first[0] < (noisy - bits_a).sum() / num_bytes.sum() < first[1]


def test_bootstrap_has_the_width_of_theory() -> None:
    """Documents of one size: the ratio is a mean, and its interval the normal one."""
    differences = np.random.default_rng(5).normal(0.3, 1.0, size=2000)
    low, high = bootstrap_over_documents(np.zeros(2000), differences * 100, np.full(2000, 100))
    assert high - low == pytest.approx(2 * 1.96 * differences.std() / math.sqrt(2000), rel=0.06)


def test_holm_by_hand() -> None:
    assert holm({}) == {}
    assert holm({"a": 0.04}) == {"a": 0.04}
    adjusted = holm({"a": 0.03, "b": 0.01, "c": 0.02, "d": 0.9})
    assert adjusted == pytest.approx({"a": 0.06, "b": 0.04, "c": 0.06, "d": 0.9})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0}


def test_holm_keeps_the_family_error_rate() -> None:
    p_values = np.random.default_rng(6).uniform(size=(4000, 3))
    false = [min(holm(dict(zip("abc", row, strict=True))).values()) < 0.05 for row in p_values]
    assert np.mean(false) == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(
    ("difference", "half_width", "adjusted_p", "outcome"),
    [
        (-0.04, 0.01, 0.01, "better"),
        (0.04, 0.01, 0.01, "worse"),
        (-0.04, 0.03, 0.06, "inconclusive"),
        (0.002, 0.005, 0.4, "no difference shown"),
        (0.002, 0.009, 0.4, "inconclusive"),
        (-0.006, 0.002, 0.01, "better"),
    ],
)
def test_verdict(difference: float, half_width: float, adjusted_p: float, outcome: Outcome) -> None:
    decision = verdict(paired(difference, half_width), adjusted_p, 0.01)
    assert decision.outcome == outcome
    assert decision.reason.endswith(".")
    assert ("smallest effect of interest" in decision.reason) == (abs(difference) != 0.04 or adjusted_p > 0.05)


def test_degenerate_seeds_give_no_nan_and_no_false_claim() -> None:
    """Warnings are errors here, so none is hidden."""
    cases: list[tuple[dict[int, float], dict[int, float], Outcome]] = [
        ({}, {}, "inconclusive"),
        ({1: 2.0}, {2: 2.0}, "inconclusive"),
        ({1: 2.0}, {1: 1.0}, "inconclusive"),
        (seeds(2.0, 2.0, 2.0), seeds(2.0, 2.0, 2.0), "no difference shown"),
        (seeds(2.0, 2.1, 2.3), seeds(2.0, 2.1, 2.3), "no difference shown"),
        (seeds(2.0, 2.1, 2.3), seeds(1.9, 2.0, 2.2), "inconclusive"),
        (seeds(0.0, 0.0), seeds(0.0, 0.0), "no difference shown"),
    ]
    for reference, other, outcome in cases:
        found = paired_difference(reference, other)
        json.dumps(dataclasses.asdict(found), allow_nan=False)
        adjusted = found.p_value
        assert verdict(found, adjusted, 0.01).outcome == outcome, (reference, other)
    assert "One seed" in verdict(paired_difference({1: 2.0}, {1: 1.0}), None, 0.01).reason
    assert mean_interval([2.0]) == (2.0, None)
    assert mean_interval([2.0, 2.0]) == (2.0, (2.0, 2.0))
    assert bootstrap_over_documents([10.0], [9.0], [5]) is None
    assert bootstrap_over_documents([10.0, 20.0], [10.0, 20.0], [5, 9]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "at least one is needed"),
        (lambda: mean_interval([1.0, math.nan]), "not finite: nan"),
        (lambda: mean_interval([1.0], 95), "confidence is 95"),
        (lambda: paired_difference({1: 1.0}, {1: math.inf}), "not finite: inf"),
        (lambda: bootstrap_over_documents([1, 2], [1, 2], [3]), "2, 2 and 1 documents"),
        (lambda: bootstrap_over_documents([1, 2], [1, 2], [3, 0]), "weighs 0; more than 0"),
    ],
)
def test_bad_input_is_one_clear_line(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
