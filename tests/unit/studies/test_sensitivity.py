"""The numbers that a tuning curve is summed up in."""

from __future__ import annotations

import pytest

from paribus.studies.result import Baseline, TuningPoint
from paribus.studies.sensitivity import failure_bounds, sensitivity, sentence


def points(*tried: tuple[float, float | None], **others: object) -> list[TuningPoint]:
    return [TuningPoint({"optimizer.lr": lr, **others}, bits, 1000, False, bits is None) for lr, bits in tried]


def test_what_a_wrong_learning_rate_costs() -> None:
    found = sensitivity(points((1e-3, 3.0), (1e-2, 2.0), (1e-1, 2.5)), [1e-3, 1e-2, 1e-1], 5.0, 8.0)
    assert found.excess == pytest.approx((1.0 + 0.0 + 0.5) / 3)
    assert (found.best, found.threshold, found.largest) == (1e-2, None, 1e-1)
    assert sentence(found, "bits_per_byte") == (
        "best optimizer.lr 0.01, sensitivity 0.5000 bits per byte over 0.001 to 0.1, holds up to 0.1"
    )


def test_divergence_and_worse_than_nothing_count_as_knowing_nothing() -> None:
    found = sensitivity(points((1e-3, 3.0), (1e-2, 11.0), (1e-1, None)), [1e-3, 1e-2, 1e-1], 5.0, 8.0)
    assert found.excess == pytest.approx((0.0 + 5.0 + 5.0) / 3)
    assert (found.best, found.threshold) == (1e-3, 1e-2)
    assert sentence(found, "bits_per_byte").endswith("breaks at 0.01")


def test_values_added_at_an_edge_count_for_the_best_and_not_for_the_mean() -> None:
    found = sensitivity(points((1e-3, 3.0), (1e-2, 2.5), (1e-1, 2.0), (1.0, None)), [1e-3, 1e-2], 5.0, 8.0)
    assert found.best == 1e-1
    assert found.excess == pytest.approx((1.0 + 0.5) / 2)
    assert (found.threshold, found.largest, found.grid) == (1.0, 1.0, (1e-3, 1e-2))


def test_a_small_value_that_learns_too_little_does_not_break() -> None:
    found = sensitivity(points((1e-5, 6.0), (1e-3, 3.0), (1e-2, 5.5)), [1e-5, 1e-3, 1e-2], 5.0, 8.0)
    assert found.threshold == 1e-2
    assert sensitivity(points((1e-5, 6.0), (1e-3, 3.0)), [1e-5, 1e-3], 5.0, 8.0).threshold is None


def test_an_arm_that_nothing_tames() -> None:
    found = sensitivity(points((1e-3, None), (1e-2, None)), [1e-3, 1e-2], 5.0, 8.0)
    assert (found.best, found.excess, found.threshold) == (None, None, 1e-3)
    assert sentence(found, "bits_per_byte") == "no tried value ended, breaks at 0.001"


def test_the_best_of_the_other_tuned_values_counts() -> None:
    tried = points((1e-3, 3.0), (1e-2, None), wd=0.0) + points((1e-3, 4.0), (1e-2, 2.0), wd=0.1)
    found = sensitivity(tried, [1e-3, 1e-2], 5.0, 8.0)
    assert (found.best, found.threshold) == (1e-2, None)
    assert found.excess == pytest.approx(0.5)


def test_without_a_ceiling_divergence_counts_as_the_worst_that_finished() -> None:
    found = sensitivity(points((1e-3, 0.3), (1e-2, 0.2), (1e-1, None)), [1e-3, 1e-2, 1e-1], None, None)
    assert found.excess == pytest.approx((0.1 + 0.0 + 0.1) / 3)
    assert (found.threshold, found.bound, found.ceiling) == (1e-1, None, None)


@pytest.mark.parametrize(
    ("metric", "scores", "expected"),
    [
        ("bits_per_byte", (), (8.0, 8.0)),
        ("bits_per_byte", (2.9, 4.9), (4.9, 8.0)),
        ("bits_per_byte", (9.0,), (8.0, 8.0)),
        ("error_rate", (0.9,), (0.9, 1.0)),
        ("flow_loss", (1.3,), (1.3, 1.3)),
        ("flow_loss", (), (None, None)),
    ],
)
def test_what_counts_as_failed(metric: str, scores: tuple[float, ...], expected: tuple[float | None, ...]) -> None:
    lines = [Baseline(f"line {score}", score, "", metric, ("reference",)) for score in scores]
    other = Baseline("of another metric", 0.1, "", "cross_entropy", ("reference",))
    assert failure_bounds(metric, [*lines, other]) == expected
