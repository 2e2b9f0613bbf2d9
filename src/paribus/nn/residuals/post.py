"""Post-norm: each branch reads the stream itself, and the norm comes after the sum.

    x ← norm(α x + mixer(x))        x ← norm(α x + channel(x))

Paper:    Vaswani et al. 2017, arXiv:1706.03762, section 3.1: α = 1; preset "deep_norm": Wang et al. 2022,
          arXiv:2203.00555, figure 2: α = (2L)^(1/4) of L layers of one stack
Differs:  the model's last norm follows the last block's; DeepNorm's smaller initial weights are an initialisation of
          their own, to be named beside this scheme
Shapes:   x [B, T, D]
Cost:     two norms
Raises:   ValueError if alpha is not positive
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..mixer import Placement
from ..residual import Branch, Residual

PRESETS: dict[str, dict[str, Any]] = {"deep_norm": {"scaling": "deep_norm"}}


class PostNorm(Residual):
    """norm(α x + f(x)) for each branch f."""

    @dataclass(frozen=True)
    class Config:
        """Settings of post-norm."""

        alpha: float = 1.0
        """Weight of the stream in the sum."""
        scaling: Literal["none", "deep_norm"] = "none"
        """What alpha is multiplied with: nothing, or DeepNorm's (2L)^(1/4)."""

    def __init__(self, placement: Placement, config: Config, norm: str, has_channel: bool) -> None:
        super().__init__(placement, config, norm, has_channel)
        if config.alpha <= 0:
            raise ValueError(f"post: alpha is {config.alpha}; a positive number is needed")
        self.alpha = config.alpha
        if config.scaling == "deep_norm":
            self.alpha *= (2 * placement.num_layers) ** 0.25
        self.mixer_norm = self.norm()
        if has_channel:
            self.channel_norm = self.norm()

    def forward(self, x: Tensor, mix: Branch, channel: Branch | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = self.mixer_norm(self.alpha * x + mix(x))
        if channel is not None:
            x = self.channel_norm(self.alpha * x + channel(x))
        return x
