"""Schedules against their formulas; the optimizer against torch's own, step by step."""

from __future__ import annotations

import math

import pytest
import torch

from paribus.optim.optimizer import Optimizer, make_optimizer
from paribus.optim.schedule import Schedule

TOTAL = 100


def factors(schedule: Schedule, total: int = TOTAL) -> list[float]:
    return [schedule.factor(step, total) for step in range(total)]


def test_warmup_is_a_straight_line() -> None:
    for name in ("cosine", "constant", "wsd"):
        found = factors(Schedule(name, warmup=0.1))
        assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert max(found) == 1.0


def test_cosine() -> None:
    found = factors(Schedule("cosine", warmup=0.2, final=0.1))
    for step in range(20, TOTAL):
        assert found[step] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * (step - 19) / 80)))
    assert found[-1] == pytest.approx(0.1)
    assert sorted(found[19:], reverse=True) == found[19:]


def test_constant() -> None:
    assert factors(Schedule("constant", warmup=0.0)) == [1.0] * TOTAL


def test_wsd() -> None:
    found = factors(Schedule("wsd", warmup=0.1, final=0.0, decay=0.2))
    assert found[9:80] == [1.0] * 71
    assert found[80:] == pytest.approx([(99 - step) / 20 for step in range(80, 100)])
    assert factors(Schedule("wsd", warmup=0.0, decay=0.0)) == [1.0] * TOTAL


def test_a_share_that_floats_overshoot() -> None:
    assert 0.07 * 100 > 7
    assert factors(Schedule("constant", warmup=0.07))[6] == 1.0


@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize("name", ["cosine", "constant", "wsd"])
def test_short_runs(name: str, total: int) -> None:
    found = factors(Schedule(name, warmup=0.05), total)  # type: ignore[arg-type]
    assert all(0 < factor <= 1 for factor in found)
    assert found[0] == 1.0, "one step of warm-up is at the peak"


def test_the_optimizer_is_adamw_that_decays_matrices() -> None:
    settings = Optimizer(lr=0.01, weight_decay=0.5, settings={"betas": (0.8, 0.9), "eps": 1e-6})
    shapes = {
        "model.embedding.table.weight": (5, 3),
        "norm.weight": (3,),
        "layer.weight": (3, 3),
        "convolution": (2, 1, 2),
    }
    parameters = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    theirs = {name: torch.nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}
    matrices = [theirs["layer.weight"], theirs["convolution"]]
    others = [theirs["model.embedding.table.weight"], theirs["norm.weight"]]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.8, 0.9),
        eps=1e-6,
        foreach=False,
    )
    optimizer = make_optimizer(settings, parameters.items())
    for _ in range(5):
        for name, parameter in parameters.items():
            parameter.grad = torch.randn_like(parameter)
            theirs[name].grad = parameter.grad.clone()
        optimizer.step()
        reference.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter, theirs[name])
