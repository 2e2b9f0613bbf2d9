"""Normalisations of the channel axis, by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .settings import nearest


class _RMSNorm(torch.autograd.Function):
    """Keeps the input and one number a vector; on the CPU, torch's own is a dozen operations, each with its memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (grad,) = outputs
        x, weight, scale = ctx.saved_tensors
        product = grad * x
        along = (product @ weight)[..., None] * scale.square() / -x.shape[-1]
        grad_weight = torch.mv(product.flatten(0, -2).T, scale.flatten()) if ctx.needs_input_grad[1] else None
        return (grad * weight).addcmul_(x, along).mul_(scale), grad_weight, None


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) ⊙ weight over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if x.device.type != "cpu":
            return functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        compute = torch.promote_types(x.dtype, torch.float32)
        y: Tensor = _RMSNorm.apply(x.to(compute), self.weight.to(compute), self.eps)
        return y.to(x.dtype)

    def reset_parameters(self) -> None:
        """Weight one."""
        nn.init.ones_(self.weight)


class SimpleRMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) over the last axis, without a weight (Qin et al. 2023, arXiv:2307.14995)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.width = width
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if x.device.type != "cpu":
            return functional.rms_norm(x, (self.width,), None, self.eps)
        compute = torch.promote_types(x.dtype, torch.float32)
        y: Tensor = _RMSNorm.apply(x.to(compute), torch.ones(self.width, dtype=compute), self.eps)
        return y.to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) ⊙ weight over the last axis, no bias (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return functional.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), None, self.eps)

    def reset_parameters(self) -> None:
        """Weight one."""
        nn.init.ones_(self.weight)


NORMS: dict[str, type[RMSNorm] | type[SimpleRMSNorm] | type[LayerNorm]] = {
    "rms_norm": RMSNorm,
    "simple_rms_norm": SimpleRMSNorm,
    "layer_norm": LayerNorm,
}


def make_norm(name: str, width: int) -> nn.Module:
    """The norm called `name` for vectors of `width`.

    Raises:
        ValueError: unknown name.
    """
    if name not in NORMS:
        raise ValueError(f"unknown norm '{name}'; {nearest(name, NORMS)}")
    return NORMS[name](width)
