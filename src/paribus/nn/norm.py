"""Normalisations of the channel axis, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .settings import nearest


class _RMSNorm(torch.autograd.Function):
    """Keeps the input and one number a vector; on the CPU, torch's own is a dozen operations, each with its memory.

    A compiler makes one of them, so that compiled code has torch's own.
    """

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


class _L2Norm(torch.autograd.Function):
    """Likewise for x / max(‖x‖, eps) ⊙ weight; where eps decides, the length of x has no part in the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=eps)
        ctx.save_for_backward(x, weight, length)
        ctx.eps = eps
        return x * length.reciprocal() * weight  # not in place: the compiler of torch 2.11 then loses the gradient

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (grad,) = outputs
        x, weight, length = ctx.saved_tensors
        scale = length.reciprocal()
        product = (grad * x).mul_(scale)
        grad_weight = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        along = (product @ weight)[..., None] * -scale * (length > ctx.eps)
        return (grad * weight).addcmul_(x, along).mul_(scale), grad_weight, None


class _DynamicTanh(torch.autograd.Function):
    """Keeps the input and the tanh."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        t = (x * alpha).tanh_()
        ctx.save_for_backward(x, t, alpha, weight)
        return torch.addcmul(bias, t, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (grad,) = outputs
        x, t, alpha, weight = ctx.saved_tensors
        grad_weight = (grad * t).flatten(0, -2).sum(0)
        inner = torch.square(t).neg_().add_(1).mul_(grad).mul_(weight)
        grad_alpha = torch.dot(inner.flatten(), x.flatten())[None]
        return inner.mul_(alpha), grad_alpha, grad_weight, grad.flatten(0, -2).sum(0)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) ⊙ weight over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if x.device.type != "cpu" or torch.compiler.is_compiling():
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
        if x.device.type != "cpu" or torch.compiler.is_compiling():
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


class L2Norm(nn.Module):
    """x / max(‖x‖, 1e-16) ⊙ weight over the last axis, as HomebrewNLP's Olmax (2022): channels of 1/√D.

    Vectors are √D times shorter than those of `rms_norm`; what reads or writes through it starts small.
    At x = 0 the slope is 1e16.
    """

    eps = 1e-16

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        compute = torch.promote_types(x.dtype, torch.float32)
        y: Tensor = _L2Norm.apply(x.to(compute), self.weight.to(compute), self.eps)
        return y.to(x.dtype)

    def reset_parameters(self) -> None:
        """Weight one."""
        nn.init.ones_(self.weight)


class ScaleNorm(nn.Module):
    """g x / max(‖x‖, 1e-5) over the last axis with one g, √D at first (Nguyen and Salazar 2019, arXiv:1910.05895)."""

    eps = 1e-5

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.empty(1))  # FSDP refuses parameters without an axis

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        compute = torch.promote_types(x.dtype, torch.float32)
        y: Tensor = _L2Norm.apply(x.to(compute), self.scale.to(compute).expand(self.width), self.eps)
        return y.to(x.dtype)

    def reset_parameters(self) -> None:
        """√D, as `rms_norm` at the start."""
        nn.init.constant_(self.scale, math.sqrt(self.width))


class DynamicTanh(nn.Module):
    """tanh(α x) ⊙ weight + bias with one α, 0.5 at first: no statistics (Zhu et al. 2025, arXiv:2503.10622).

    α is the paper's default. For language models it tunes α to width and depth (section 7: less for wider models,
    more before attention than elsewhere); that is left to training here.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1))
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        compute = torch.promote_types(x.dtype, torch.float32)
        parameters = (parameter.to(compute) for parameter in (self.alpha, self.weight, self.bias))
        y: Tensor = _DynamicTanh.apply(x.to(compute), *parameters)
        return y.to(x.dtype)

    def reset_parameters(self) -> None:
        """α one half, weight one, bias zero."""
        nn.init.constant_(self.alpha, 0.5)
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)


class NoNorm(nn.Module):
    """x itself, for residual schemes that go without a norm (ReZero, Bachlechner et al. 2020, arXiv:2003.04887)."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return x


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "rms_norm": RMSNorm,
    "simple_rms_norm": SimpleRMSNorm,
    "layer_norm": LayerNorm,
    "l2_norm": L2Norm,
    "scale_norm": ScaleNorm,
    "dynamic_tanh": DynamicTanh,
    "none": NoNorm,
}


def make_norm(name: str, width: int) -> nn.Module:
    """The norm called `name` for vectors of `width`.

    Raises:
        ValueError: unknown name.
    """
    if name not in NORMS:
        raise ValueError(f"unknown norm '{name}'; {nearest(name, NORMS)}")
    return NORMS[name](width)
