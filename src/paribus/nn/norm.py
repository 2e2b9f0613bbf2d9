"""Normalisations of the channel axis, by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .settings import nearest


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) ⊙ weight over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)

    def reset_parameters(self) -> None:
        """Weight one."""
        nn.init.ones_(self.weight)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) ⊙ weight over the last axis, without bias (Ba et al. 2016, arXiv:1607.06450)."""

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


NORMS: dict[str, type[RMSNorm] | type[LayerNorm]] = {"rms_norm": RMSNorm, "layer_norm": LayerNorm}


def make_norm(name: str, width: int) -> nn.Module:
    """The norm called `name` for vectors of `width`.

    Raises:
        ValueError: unknown name.
    """
    if name not in NORMS:
        raise ValueError(f"unknown norm '{name}'; {nearest(name, NORMS)}")
    return NORMS[name](width)
