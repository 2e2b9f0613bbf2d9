"""A linear map that is as fast at odd widths as at even ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_LINE = 16
"""Numbers of float32 in a cache line."""


class _Product(torch.autograd.Function):
    """x · weightᵀ, where the result and the gradient of x have rows that begin on a cache line."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _aligned(x, weight.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,) = outputs
        x, weight = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad
        return _aligned(grad, weight) if need_x else None, grad.T @ x if need_weight else None


def _aligned(left: Tensor, right: Tensor) -> Tensor:
    """left · right in rows of whole cache lines, of which the last columns stay unused."""
    width = right.shape[1]
    rows = left.new_empty(left.shape[0], -(-width // _LINE) * _LINE)
    return torch.mm(left, right, out=rows[:, :width])


class Projection(nn.Linear):
    """A linear map without bias.

    Widths that a study solves are odd, and on a CPU a matrix product writes rows of 683 numbers at half the speed
    of rows of 688. Here rows lie 688 numbers apart whatever their width, so that arms differ in speed by what they
    compute, not by what divides their widths.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., E]."""
        even = self.in_features % _LINE == 0 and self.out_features % _LINE == 0
        other = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
        if even or other or torch.compiler.is_compiling():  # a compiler lays memory out itself
            return functional.linear(x, self.weight)
        y: Tensor = _Product.apply(x.flatten(0, -2), self.weight)
        return y.unflatten(0, x.shape[:-1])
