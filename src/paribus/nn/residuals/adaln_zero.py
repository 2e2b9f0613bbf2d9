"""Pre-norm with a shift, a scale and a gate that the row's condition decides; at the start every layer is the identity.

    (s₁, b₁, g₁, s₂, b₂, g₂) = W silu(c) + a        W = 0, a = 0 at the start
    x ← x + g₁ mixer((1 + s₁) norm(x) + b₁)        x ← x + g₂ channel((1 + s₂) norm(x) + b₂)

Paper:    Peebles and Xie 2022, arXiv:2212.09748, section 3.2 (DiT, adaLN-Zero)
Differs:  the norm is the block's and keeps its own weight; without a condition (c = 0) the six are learned vectors
Shapes:   x [B, T, D], c [B, D], each of the six [B, 1, D]
Cost:     two norms and a map from D to 6D for each row (3D without a channel mixer)
Raises:   nothing
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..mixer import Placement
from ..modulation import Modulation
from ..residual import Branch, Residual


class AdaLNZero(Residual):
    """x + g f((1 + s) norm(x) + b) for each branch f."""

    reads_condition = True

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, placement: Placement, config: Config, norm: str, has_channel: bool) -> None:
        super().__init__(placement, config, norm, has_channel)
        self.mixer_norm = self.norm()
        if has_channel:
            self.channel_norm = self.norm()
        self.modulation = Modulation(placement.width, 6 if has_channel else 3)

    def forward(self, x: Tensor, mix: Branch, channel: Branch | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        condition = None if mix.context is None else mix.context.condition
        scale, shift, gate, *others = self.modulation(condition, x)
        x = x + gate * mix((1 + scale) * self.mixer_norm(x) + shift)
        if channel is None:
            return x
        scale, shift, gate = others
        return x + gate * channel((1 + scale) * self.channel_norm(x) + shift)
