"""Parallel branches: both read the same normed stream, and both add to it at once.

    n = norm(x)        x ← x + mixer(n) + channel(n)

Paper:    Wang and Komatsuzaki 2021, GPT-J (code only); Chowdhery et al. 2022, arXiv:2204.02311, section 2
Differs:  nothing; without a channel mixer it is pre-norm
Shapes:   x, n [B, T, D]
Cost:     one norm
Raises:   nothing
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..mixer import Placement
from ..residual import Branch, Residual


class Parallel(Residual):
    """x + f(norm(x)) + g(norm(x)) for both branches with one norm."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, placement: Placement, config: Config, norm: str, has_channel: bool) -> None:
        super().__init__(placement, config, norm, has_channel)
        self.shared_norm = self.norm()

    def forward(self, x: Tensor, mix: Branch, channel: Branch | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        n = self.shared_norm(x)
        x = x + mix(n)
        return x if channel is None else x + channel(n)
