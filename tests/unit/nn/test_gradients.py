"""Projections, norms and rotations with gradients of their own: equal to torch's operations, gradients included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from paribus.nn.norm import RMSNorm
from paribus.nn.positions import rotary_tables, rotate
from paribus.nn.projection import Projection

Function = Callable[..., Tensor]


def assert_equal(ours: Function, expected: Function, *inputs: Tensor) -> None:
    """The same values and the same gradients of all inputs."""
    y, exact = ours(*inputs), expected(*inputs)
    direction = torch.randn_like(exact)
    torch.testing.assert_close(y, exact)
    for gradients in zip(*(torch.autograd.grad(out, inputs, direction) for out in (y, exact)), strict=True):
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 13), (13, 16), (5, 7), (16, 32)])
@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (4,)], ids=str)
def test_projection_is_linear(inputs: int, outputs: int, shape: tuple[int, ...]) -> None:
    projection = Projection(inputs, outputs)
    torch.nn.init.normal_(projection.weight)
    x = torch.randn(*shape, inputs, requires_grad=True)
    assert_equal(lambda x, weight: projection(x), functional.linear, x, projection.weight)


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_projection_makes_only_the_gradients_that_are_wanted(frozen: str) -> None:
    projection = Projection(5, 7)
    x = torch.randn(3, 5, requires_grad=frozen != "input")
    projection.weight.requires_grad_(frozen != "weight")
    projection(x).sum().backward()
    assert (x.grad is None) == (frozen == "input")
    assert (projection.weight.grad is None) == (frozen == "weight")


def test_projection_under_autocast_is_half_precision() -> None:
    projection = Projection(5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert projection(torch.randn(3, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(2, 3, 5), (4, 16), (2, 3, 2, 6)], ids=str)
def test_rms_norm_is_torchs(shape: tuple[int, ...]) -> None:
    norm = RMSNorm(shape[-1])
    torch.nn.init.normal_(norm.weight)

    def expected(x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, norm.eps)

    assert_equal(lambda x, weight: norm(x), expected, torch.randn(shape, requires_grad=True), norm.weight)


def test_rms_norm_of_zeros_and_of_half_precision() -> None:
    norm = RMSNorm(6)
    torch.nn.init.ones_(norm.weight)
    x = torch.zeros(2, 6, requires_grad=True)
    norm(x).sum().backward()
    assert not norm(x).any()
    assert x.grad is not None and x.grad.isfinite().all()
    half = torch.randn(2, 6, dtype=torch.bfloat16)
    torch.testing.assert_close(norm(half), norm(half.float()).bfloat16())


def test_rotation_turns_pairs_by_their_angle() -> None:
    positions = torch.tensor([[0, 1, 5], [2, 3, 4]])
    cosine, sine = rotary_tables(positions, 4, 100.0, torch.float32, None)
    x = torch.randn(2, 3, 2, 4, requires_grad=True)

    def expected(x: Tensor) -> Tensor:
        turn = torch.polar(torch.ones(2, 3, 1, 2), positions[..., None, None] * torch.tensor([1.0, 0.1]))
        turned = torch.complex(x[..., :2], x[..., 2:]) * turn
        return torch.cat([turned.real, turned.imag], -1)

    assert_equal(lambda x: rotate(x, cosine, sine), expected, x)
