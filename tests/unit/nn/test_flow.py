"""Solvers beside exact solutions, and guidance beside its formula."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.nn.flow import SOLVERS, sample_flow

NO_CLASS = 3
CLASSES = torch.tensor([0, 1, 2, 1])


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sample(velocity: Any, noise: Tensor, **changes: Any) -> Tensor:
    settings = {"steps": 4, "solver": "heun", "guidance": 1.0, **changes}
    return sample_flow(velocity, noise, CLASSES, NO_CLASS, **settings)


def column(values: Tensor) -> Tensor:
    return values[:, None, None, None].double()


def rotating(x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
    """dx/dt = c x cos t, whose solution is x(0) exp(c sin t)."""
    return (1 + column(classes)) * x * column(t.cos())


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_constant_velocity_is_followed_exactly(solver: str, noise: Tensor) -> None:
    target = torch.randn_like(noise)
    for steps in (1, 7):
        found = sample(lambda x, t, classes: target - noise, noise, solver=solver, steps=steps)
        torch.testing.assert_close(found, target, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_halved_steps_shrink_the_error_by_the_order(solver: str, order: int, noise: Tensor) -> None:
    exact = noise * ((1 + column(CLASSES)) * math.sin(1)).exp()
    errors = [
        float((sample(rotating, noise, solver=solver, steps=steps) - exact).norm()) for steps in (1024, 2048, 4096)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.02)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_is_its_formula(solver: str, guidance: float, noise: Tensor) -> None:
    calls = []

    def velocity(x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        calls.append(len(x))
        assert x.shape[0] == t.shape[0] == classes.shape[0]
        return rotating(x, t, classes)

    def guided(x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        freely = rotating(x, t, torch.full_like(classes, NO_CLASS))
        return freely + guidance * (rotating(x, t, classes) - freely)

    found = sample(velocity, noise, solver=solver, guidance=guidance)
    torch.testing.assert_close(found, sample(guided, noise, solver=solver), rtol=1e-12, atol=1e-12)
    assert set(calls) == {4 if guidance in (0, 1) else 8}, "rows of a call"
    assert len(calls) == (4 if solver == "euler" else 8)


def test_times_are_those_of_the_steps(noise: Tensor) -> None:
    seen: dict[str, list[float]] = {}
    for solver in SOLVERS:
        times: list[float] = []

        def velocity(x: Tensor, t: Tensor, classes: Tensor, times: list[float] = times) -> Tensor:
            times.append(float(t[0]))
            return x

        sample(velocity, noise, solver=solver)
        seen[solver] = times
    assert seen == {"euler": [0, 0.25, 0.5, 0.75], "heun": [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1]}


def test_half_precision_keeps_its_type_and_exact_times(noise: Tensor) -> None:
    def velocity(x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        assert t.dtype == torch.float32
        return x

    assert sample(velocity, noise.bfloat16()).dtype == torch.bfloat16


def test_equal_noise_gives_equal_samples_and_stays_as_it_was(noise: Tensor) -> None:
    kept = noise.clone()
    first, second = (sample(rotating, noise, guidance=2.0) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(noise, kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "sampling: steps is 0; at least 1 is needed"),
        ({"solver": "eular"}, "sampling: solver is 'eular'; allowed: 'euler', 'heun'"),
        ({"guidance": -1.0}, "sampling: guidance is -1.0; a number that is not negative is needed"),
        ({"guidance": math.inf}, "sampling: guidance is inf; a number that is not negative is needed"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], message: str, noise: Tensor) -> None:
    with pytest.raises(ValueError) as caught:
        sample(rotating, noise, **changes)
    assert str(caught.value) == message
