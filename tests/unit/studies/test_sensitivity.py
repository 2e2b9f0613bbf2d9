"""The numbers that a tuning curve is summed up in."""

from __future__ import annotations

import pytest

from paribus.studies.result import Baseline, TuningPoint
from paribus.studies.sensitivity import failure_bound, sensitivity, sentence


def points(*tried: tuple[float, float | None], **others: object) -> list[TuningPoint]:
    return [TuningPoint({"optimizer.lr": lr, **others}, bits, 1000, False, bits is None) for lr, bits in tried]


def test_what_a_wrong_learning_rate_costs() -> None:
    found = sensitivity(points((1e-3, 3.0), (1e-2, 2.0), (1e-1, 2.5)), [1e-3, 1e-2, 1e-1], 5.0)
    assert found.excess == pytest.approx((1.0 + 0.0 + 0.5) / 3)
    assert (found.best, found.threshold, found.largest) == (1e-2, None, 1e-1)
    assert sentence(found) == (
        "best optimizer.lr 0.01, sensitivity 0.5000 bits per byte over 0.001 to 0.1, holds up to 0.1"
    )


def test_divergence_and_worse_than_nothing_count_as_knowing_nothing() -> None:
    found = sensitivity(points((1e-3, 3.0), (1e-2, 11.0), (1e-1, None)), [1e-3, 1e-2, 1e-1], 5.0)
    assert found.excess == pytest.approx((0.0 + 5.0 + 5.0) / 3)
    assert (found.best, found.threshold) == (1e-3, 1e-2)
    assert sentence(found).endswith("breaks at 0.01")


def test_values_added_at_an_edge_count_for_the_best_and_not_for_the_mean() -> None:
    found = sensitivity(points((1e-3, 3.0), (1e-2, 2.5), (1e-1, 2.0), (1.0, None)), [1e-3, 1e-2], 5.0)
    assert found.best == 1e-1
    assert found.excess == pytest.approx((1.0 + 0.5) / 2)
    assert (found.threshold, found.largest, found.grid) == (1.0, 1.0, (1e-3, 1e-2))


def test_a_small_value_that_learns_too_little_does_not_break() -> None:
    found = sensitivity(points((1e-5, 6.0), (1e-3, 3.0), (1e-2, 5.5)), [1e-5, 1e-3, 1e-2], 5.0)
    assert found.threshold == 1e-2
    assert sensitivity(points((1e-5, 6.0), (1e-3, 3.0)), [1e-5, 1e-3], 5.0).threshold is None


def test_an_arm_that_nothing_tames() -> None:
    found = sensitivity(points((1e-3, None), (1e-2, None)), [1e-3, 1e-2], 5.0)
    assert (found.best, found.excess, found.threshold) == (None, None, 1e-3)
    assert sentence(found) == "no tried value ended, breaks at 0.001"


def test_the_best_of_the_other_tuned_values_counts() -> None:
    tried = points((1e-3, 3.0), (1e-2, None), wd=0.0) + points((1e-3, 4.0), (1e-2, 2.0), wd=0.1)
    found = sensitivity(tried, [1e-3, 1e-2], 5.0)
    assert (found.best, found.threshold) == (1e-2, None)
    assert found.excess == pytest.approx(0.5)


def test_what_counts_as_failed() -> None:
    assert failure_bound([]) == 8.0
    lines = [Baseline("byte 5-gram", 2.9, ""), Baseline("byte 1-gram", 4.9, "")]
    assert failure_bound(lines) == 4.9
    assert failure_bound([Baseline("odd", 9.0, "")]) == 8.0
