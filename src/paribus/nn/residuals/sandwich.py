"""Sandwich norm: each branch between two norms, so that what it adds has a size of its own choosing.

    x ← x + norm₂(mixer(norm₁(x)))        x ← x + norm₄(channel(norm₃(x)))

Paper:    Ding et al. 2021, CogView, arXiv:2105.13290, section 2.4
Differs:  the paper's LayerNorm is the block's norm here; dropout comes before the second norm
Shapes:   x [B, T, D]
Cost:     four norms
Raises:   nothing
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..mixer import Placement
from ..residual import Branch, Residual


class SandwichNorm(Residual):
    """x + norm(f(norm(x))) for each branch f."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, placement: Placement, config: Config, norm: str, has_channel: bool) -> None:
        super().__init__(placement, config, norm, has_channel)
        self.mixer_norm = self.norm()
        self.mixer_output_norm = self.norm()
        if has_channel:
            self.channel_norm = self.norm()
            self.channel_output_norm = self.norm()

    def forward(self, x: Tensor, mix: Branch, channel: Branch | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.mixer_output_norm(mix(self.mixer_norm(x)))
        if channel is not None:
            x = x + self.channel_output_norm(channel(self.channel_norm(x)))
        return x
