"""Positional encodings that mixers share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .mixer import Context


def rotary_tables(
    positions: Tensor, width: int, base: float, dtype: torch.dtype, context: Context | None
) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine [B or 1, T, 1, width] of the angles position · base^(-2i/width), for `rotate`.

    All layers of one forward see the same positions, so the tables are made once and kept in its `context`.
    """
    key = ("rotary", width, base, str(dtype))
    if context is not None and key in context.tables:
        cosine, sine = context.tables[key]
        return cosine, sine
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    if positions.stride(0) == 0:  # every row stands at the same positions
        positions = positions[:1]
    angles = positions[..., None].float() * base**-exponents  # B T width/2
    cosine, sine = angles.cos(), angles.sin()
    cosine, sine = (torch.cat(pair, -1)[..., None, :].to(dtype) for pair in ((cosine, cosine), (-sine, sine)))
    if context is not None:
        context.tables[key] = (cosine, sine)
    return cosine, sine


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the opposite rotation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _swap_halves(x).mul_(sine).addcmul_(x, cosine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = outputs
        cosine, sine = ctx.saved_tensors
        return _swap_halves(grad).mul_(-sine).addcmul_(grad, cosine), None, None


def _swap_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([second, first], -1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary encoding of x [B, T, H, K] (Su et al. 2021, arXiv:2104.09864), channel i paired with i + K/2."""
    y: Tensor = _Rotate.apply(x, cosine, sine)
    return y


def alibi_slopes(num_heads: int, like: Tensor) -> Tensor:
    """[H], in float32 or wider: 2^(-8h/H) for head h = 1, …, H (Press et al. 2021, arXiv:2108.12409)."""
    heads = torch.arange(1, num_heads + 1, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    return torch.exp2(-8 * heads / num_heads)
