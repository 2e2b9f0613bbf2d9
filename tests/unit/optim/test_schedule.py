"""Schedules against their formulas, and against those of transformers where both have the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import transformers

from paribus.optim.schedule import SCHEDULES, Schedule

TOTAL = 100


def factors(schedule: Schedule, total: int = TOTAL, tokens_per_step: int = 1) -> list[float]:
    return [schedule.factor(step, total, tokens_per_step) for step in range(total)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_is_a_straight_line(name: str) -> None:
    found = factors(Schedule(name, warmup=0.1))
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(found) == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_in_tokens(name: str) -> None:
    assert factors(Schedule(name, warmup_tokens=640), tokens_per_step=64) == factors(Schedule(name, warmup=0.1))
    assert factors(Schedule(name, warmup_tokens=577), tokens_per_step=64) == factors(Schedule(name, warmup=0.1))
    assert factors(Schedule(name, warmup_tokens=0)) == factors(Schedule(name, warmup=0.0))
    longer = factors(Schedule(name, warmup_tokens=400))
    assert longer == pytest.approx([(step + 1) / 400 for step in range(TOTAL)])


def test_cosine() -> None:
    found = factors(Schedule("cosine", warmup=0.2, final=0.1))
    for step in range(20, TOTAL):
        assert found[step] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * (step - 19) / 80)))
    assert found[-1] == pytest.approx(0.1)
    assert sorted(found[19:], reverse=True) == found[19:]


def test_constant() -> None:
    assert factors(Schedule("constant", warmup=0.0)) == [1.0] * TOTAL


def test_linear() -> None:
    found = factors(Schedule("linear", warmup=0.2, final=0.1))
    assert found[20:] == pytest.approx([1 - 0.9 * (step - 19) / 80 for step in range(20, TOTAL)])
    assert found[-1] == pytest.approx(0.1)


def test_wsd() -> None:
    found = factors(Schedule("wsd", warmup=0.1, final=0.0, decay=0.2))
    assert found[9:80] == [1.0] * 71
    assert found[80:] == pytest.approx([(99 - step) / 20 for step in range(80, 100)])
    assert factors(Schedule("wsd", warmup=0.0, decay=0.0)) == [1.0] * TOTAL


def test_inverse_sqrt() -> None:
    found = factors(Schedule("inverse_sqrt", warmup=0.1))
    assert found[9:] == pytest.approx([math.sqrt(10 / (step + 1)) for step in range(9, 100)])
    assert factors(Schedule("inverse_sqrt", warmup=0.0))[3] == 0.5


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("constant", transformers.get_constant_schedule_with_warmup),
        ("cosine", lambda *sizes: transformers.get_cosine_schedule_with_warmup(*sizes, TOTAL)),
        ("linear", lambda *sizes: transformers.get_linear_schedule_with_warmup(*sizes, TOTAL)),
        ("inverse_sqrt", transformers.get_inverse_sqrt_schedule),
    ],
)
def test_as_transformers(name: str, make: Callable[..., torch.optim.lr_scheduler.LambdaLR]) -> None:
    """Theirs spends its first step at a rate of zero; from the second on the two are one step apart."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, 10)
    theirs = []
    for _ in range(TOTAL):
        optimizer.step()
        scheduler.step()
        theirs.append(scheduler.get_last_lr()[0])
    assert factors(Schedule(name, warmup=0.1, final=0.0)) == pytest.approx(theirs)


def test_a_share_that_floats_overshoot() -> None:
    assert 0.07 * 100 > 7
    assert factors(Schedule("constant", warmup=0.07))[6] == 1.0


@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize("name", SCHEDULES)
def test_short_runs(name: str, total: int) -> None:
    found = factors(Schedule(name, warmup=0.05), total)
    assert all(0 < factor <= 1 for factor in found)
    assert found[0] == 1.0, "one step of warm-up is at the peak"


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_says_what_it_is(name: str) -> None:
    assert SCHEDULES[name].__doc__


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="unknown name 'cosin'; did you mean 'cosine'"):
        Schedule("cosin")
    with pytest.raises(ValueError, match=r"final is 1\.5; a share between 0 and 1"):
        Schedule(final=1.5)
    with pytest.raises(ValueError, match="warmup_tokens is -1; 0 or more"):
        Schedule(warmup_tokens=-1)
    with pytest.raises(ValueError, match="more than the whole run"):
        Schedule("wsd", warmup=0.9)
