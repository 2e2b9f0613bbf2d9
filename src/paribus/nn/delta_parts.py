"""What mixers share around the delta kernel: short convolutions, vectors of one length, initial values."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .kernels.convolution import short_convolution
from .segments import Rows

Initialization = Literal["house", "paper"]


class ShortConvolution(nn.Module):
    """silu(conv(x)): each channel by its own few taps, over the past or around the token."""

    def __init__(self, width: int, taps: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.weight = nn.Parameter(torch.empty(width, taps))

    def forward(self, x: Tensor, rows: Rows, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x [B, T, E] -> y [B, T, E], and the last taps - 1 inputs (None when two-directional)."""
        y, state = short_convolution(x, self.weight, rows=rows, state=state, causal=self.causal)
        return functional.silu(y), state

    def reset_parameters(self) -> None:
        """Taps by their number, so that the convolution keeps the size of its input."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)


class _WithLength(torch.autograd.Function):
    """Keeps the input and one number a vector; torch's own is several operations, each with its memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, length: float, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale)
        ctx.length = length
        return x * (length * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = outputs
        x, scale = ctx.saved_tensors
        along = (grad * x).sum(-1, keepdim=True).mul_(scale).mul_(scale).neg_()
        return torch.addcmul(grad, x, along).mul_(ctx.length * scale), None, None


def with_length(x: Tensor, length: float = 1.0, eps: float = 1e-6) -> Tensor:
    """x [..., K] times length / sqrt(|x|² + eps): vectors of one length, but for those that are almost zero."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y: Tensor = _WithLength.apply(x.to(wide), length, eps)
    return y.to(x.dtype)


def initialize_as_published(mixer: nn.Module) -> None:
    """As the published code of these mixers: maps Xavier-uniform with gain 2^-2.5, taps uniform in ±1/√taps."""
    for part in mixer.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, gain=2**-2.5)
        elif isinstance(part, ShortConvolution):
            bound = part.weight.shape[1] ** -0.5
            nn.init.uniform_(part.weight, -bound, bound)


def check_taps(taps: int, owner: str) -> None:
    """Refuse a convolution without taps.

    Raises:
        ValueError: `taps` is less than one.
    """
    if taps < 1:
        raise ValueError(f"{owner}: taps is {taps}; at least 1 is needed")
