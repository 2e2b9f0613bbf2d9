"""LayerScale: each channel of a branch is multiplied with a learned number that starts small.

    x ← x + l₁ ⊙ mixer(norm(x))        x ← x + l₂ ⊙ channel(norm(x))

Paper:    Touvron et al. 2021, arXiv:2103.17239, section 2; there l starts at 0.1 up to 18 layers, 1e-5 at 24 and 1e-6
          beyond
Differs:  l starts at `initial` whatever the depth, 1e-4 by default
Shapes:   x [B, T, D], l [D]
Cost:     two norms
Raises:   nothing
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..mixer import Placement
from ..residual import Branch, Residual


class LayerScale(Residual):
    """x + l ⊙ f(norm(x)) for each branch f."""

    @dataclass(frozen=True)
    class Config:
        """Settings of LayerScale."""

        initial: float = 1e-4
        """What every number of l starts at."""

    def __init__(self, placement: Placement, config: Config, norm: str, has_channel: bool) -> None:
        super().__init__(placement, config, norm, has_channel)
        self.mixer_norm = self.norm()
        self.mixer_scale = nn.Parameter(torch.empty(placement.width))
        if has_channel:
            self.channel_norm = self.norm()
            self.channel_scale = nn.Parameter(torch.empty(placement.width))

    def forward(self, x: Tensor, mix: Branch, channel: Branch | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.mixer_scale.to(x.dtype) * mix(self.mixer_norm(x))
        return x if channel is None else x + self.channel_scale.to(x.dtype) * channel(self.channel_norm(x))

    def reset_parameters(self) -> None:
        """All of l at `initial`."""
        nn.init.constant_(self.mixer_scale, self.config.initial)
        if self.has_channel:
            nn.init.constant_(self.channel_scale, self.config.initial)
