"""Pre-norm: each branch reads a normed stream, and adds to the stream itself.

    x ← x + mixer(norm(x))        x ← x + channel(norm(x))

Paper:    Xiong et al. 2020, arXiv:2002.04745; as GPT-2 (Radford et al. 2019)
Differs:  nothing
Shapes:   x [B, T, D]
Cost:     two norms
Raises:   nothing
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..mixer import Placement
from ..residual import Branch, Residual


class PreNorm(Residual):
    """x + f(norm(x)) for each branch f."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, placement: Placement, config: Config, norm: str, has_channel: bool) -> None:
        super().__init__(placement, config, norm, has_channel)
        self.mixer_norm = self.norm()
        if has_channel:
            self.channel_norm = self.norm()

    def forward(self, x: Tensor, mix: Branch, channel: Branch | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + mix(self.mixer_norm(x))
        return x if channel is None else x + channel(self.channel_norm(x))
