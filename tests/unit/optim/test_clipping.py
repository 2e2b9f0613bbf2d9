"""Adaptive gradient clipping against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from paribus.optim.clipping import Scope, clip_adaptively

SHAPES = [(), (5,), (4, 3), (2, 3, 4)]


def parameters() -> list[nn.Parameter]:
    """Units from far too long to short, one that is zero, and one parameter without a gradient."""
    made = []
    for shape in SHAPES:
        parameter = nn.Parameter(torch.randn(shape, dtype=torch.float64))
        parameter.grad = torch.randn(shape, dtype=torch.float64)
        if shape:
            parameter.grad *= torch.logspace(-3, 1, shape[0], dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
            parameter.data[-1] = 0.0
        made.append(parameter)
    made.append(nn.Parameter(torch.ones(2, dtype=torch.float64)))
    return made


@pytest.mark.parametrize("scope", ["tensor", "unit"])
def test_the_formula(scope: Scope) -> None:
    found = parameters()
    before = [None if parameter.grad is None else parameter.grad.clone() for parameter in found]
    clip_adaptively(found, 0.05, scope)
    clipped = kept = 0
    for parameter, gradient in zip(found, before, strict=True):
        if gradient is None:
            assert parameter.grad is None
            continue
        whole = scope == "tensor" or parameter.dim() < 2
        units = [...] if whole else range(parameter.shape[0])
        for unit in units:
            w, g = parameter.detach()[unit], gradient[unit]
            w_norm, g_norm = max(w.square().sum() ** 0.5, torch.tensor(1e-3)), g.square().sum() ** 0.5
            factor = min(1.0, float(0.05 * w_norm / g_norm))
            clipped, kept = clipped + (factor < 1), kept + (factor == 1)
            torch.testing.assert_close(parameter.grad[unit], factor * g)
    assert clipped
    assert kept or scope == "tensor"


def test_short_gradients_stay_as_they_are_to_the_bit() -> None:
    found = parameters()
    before = [parameter.grad.clone() for parameter in found if parameter.grad is not None]
    clip_adaptively(found, 1e6, "tensor")
    clip_adaptively(found, 1e6, "unit")
    after = [parameter.grad for parameter in found if parameter.grad is not None]
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("scope", ["tensor", "unit"])
def test_a_gradient_of_zero_stays_zero(scope: Scope) -> None:
    parameter = nn.Parameter(torch.zeros(3, 2))
    parameter.grad = torch.zeros(3, 2)
    clip_adaptively([parameter], 0.01, scope)
    assert torch.equal(parameter.grad, torch.zeros(3, 2))
