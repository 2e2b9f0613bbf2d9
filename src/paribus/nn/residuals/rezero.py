"""ReZero: what a block's branches add is multiplied with a learned number that starts at zero.

    x ← x + a mixer(x)        x ← x + a channel(x)        a = 0 at the start

Paper:    Bachlechner et al. 2020, arXiv:2003.04887, in the form for transformers: no norm, one number for both branches
          of a layer
Differs:  nothing; the block's norm is not used unless `pre_norm` asks for it, and the model's last norm stays
Shapes:   x [B, T, D], a [1]
Cost:     no norm, or two with `pre_norm`
Raises:   nothing
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..mixer import Placement
from ..residual import Branch, Residual


class ReZero(Residual):
    """x + a f(x) for each branch f."""

    @dataclass(frozen=True)
    class Config:
        """Settings of ReZero."""

        pre_norm: bool = False
        """Whether each branch reads a normed stream."""

    def __init__(self, placement: Placement, config: Config, norm: str, has_channel: bool) -> None:
        super().__init__(placement, config, norm, has_channel)
        self.scale = nn.Parameter(torch.empty(1))
        self.mixer_norm = self.norm() if config.pre_norm else nn.Identity()
        if has_channel:
            self.channel_norm = self.norm() if config.pre_norm else nn.Identity()

    def forward(self, x: Tensor, mix: Branch, channel: Branch | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        a = self.scale.to(x.dtype)
        x = x + a * mix(self.mixer_norm(x))
        return x if channel is None else x + a * channel(self.channel_norm(x))

    def reset_parameters(self) -> None:
        """Zero: every layer starts as the identity."""
        nn.init.zeros_(self.scale)
