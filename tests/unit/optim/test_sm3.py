"""SM3 beside its equations in float64, and beside the library's where the two agree."""

from __future__ import annotations

import itertools

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn

from paribus.optim.packing import optimizer_state_bytes
from paribus.optim.sm3 import SM3

SHAPES = [(), (5,), (4, 3), (2, 3, 4)]


def reference(weight: Tensor, gradients: list[Tensor], lr: float, momentum: float, decay: float) -> Tensor:
    """The equations, one entry of the weight at a time."""
    weight = weight.clone()
    m = torch.zeros_like(weight)
    mu: list[dict[int, float]] = [dict.fromkeys(range(size), 0.0) for size in weight.shape] or [{0: 0.0}]
    for g in gradients:
        new: list[dict[int, float]] = [dict.fromkeys(along, 0.0) for along in mu]
        u = torch.zeros_like(weight)
        for place in itertools.product(*map(range, weight.shape)):
            rows = list(enumerate(place)) or [(0, 0)]
            nu = min(mu[axis][at] for axis, at in rows) + float(g[place]) ** 2
            for axis, at in rows:
                new[axis][at] = max(new[axis][at], nu)
            u[place] = g[place] / (nu + 1e-30) ** 0.5
        mu = new
        m = momentum * m + u
        weight = (1 - lr * decay) * weight - lr * (u + momentum * m)
    return weight


def stepped(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradients: list[Tensor]) -> Tensor:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def problem(shape: tuple[int, ...]) -> tuple[nn.Parameter, list[Tensor]]:
    gradients = [torch.randn(shape, dtype=torch.float64) for _ in range(6)]
    if shape:
        for gradient in gradients:
            gradient[-1] = 0.0  # never a gradient: the update has to be zero, not a quotient of zeros
    return nn.Parameter(torch.randn(shape, dtype=torch.float64)), gradients


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_equations(shape: tuple[int, ...], momentum: float) -> None:
    parameter, gradients = problem(shape)
    expected = reference(parameter.detach(), gradients, 0.1, momentum, 0.3)
    found = stepped(SM3([parameter], lr=0.1, momentum=momentum, weight_decay=0.3), parameter, gradients)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_momentum_it_is_the_library_s(shape: tuple[int, ...]) -> None:
    parameter, gradients = problem(shape)
    other = nn.Parameter(parameter.detach().clone())
    found = stepped(SM3([parameter], lr=0.1, momentum=0.0), parameter, gradients)
    torch.testing.assert_close(found, stepped(pytorch_optimizer.SM3([other], lr=0.1), other, gradients))


def test_a_lasting_gradient_is_amplified_tenfold() -> None:
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = SM3([parameter], lr=1e-3, momentum=0.9)
    steps = []
    for step in range(400):
        before = parameter.detach().clone()
        parameter.grad = torch.full_like(parameter, 2.0)
        optimizer.step()
        update = (before - parameter.detach()) / 1e-3  # u falls as 1/√t, slowly beside the memory of 0.9
        steps.append(float(update[0] * (step + 1) ** 0.5))
    assert steps[0] == pytest.approx(1.9), "Nesterov momentum counts the first gradient once and 0.9 times"
    assert steps[-1] == pytest.approx(10, rel=0.02)


def test_memory() -> None:
    parameter = nn.Parameter(torch.randn(300, 200))
    sizes = {}
    for name, optimizer in {
        "sm3": SM3([parameter]),
        "plain": SM3([parameter], momentum=0.0),
        "adam": torch.optim.Adam([parameter]),
    }.items():
        stepped(optimizer, parameter, [torch.randn(300, 200)])
        sizes[name] = optimizer_state_bytes(optimizer)
    assert sizes["plain"] == 4 * (300 + 200)
    assert sizes["sm3"] == 4 * (300 + 200 + 300 * 200)
    assert sizes["adam"] == 4 * (2 * 300 * 200 + 1)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_momentum_is_checked(momentum: float) -> None:
    with pytest.raises(ValueError, match=f"momentum is {momentum}; 0 or more and less than 1"):
        SM3([nn.Parameter(torch.zeros(2))], momentum=momentum)
