"""Augmented shortcuts: beside the mixer, small maps of each token alone keep the tokens of deep models apart.

    n = norm(x)        x ← x + mixer(n) + Σᵢ Uᵢ gelu(Wᵢ n), i ≤ count        x ← x + channel(norm(x))

Paper:    Wang et al. 2023, PanGu-π, arXiv:2312.17276, augmented shortcuts in the form that was deployed: a bottleneck
          D → D/r → D with GELU, r = 32, beside attention only
Differs:  the shortcuts read the normed stream, as the mixer of a pre-norm block does; they have no biases and no
          dropout; the paper gives no number of shortcuts for the deployed form, here `count` is 1
Shapes:   x, n [B, T, D], W [D/r, D], U [D, D/r]
Cost:     two norms; 4 D²/r FLOPs a token for each shortcut
Raises:   ValueError if reduction or count is less than 1, or if reduction exceeds the width
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from ..mixer import Placement
from ..residual import Branch, Residual


class AugmentedShortcut(Residual):
    """Pre-norm with bottlenecks beside the mixer."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the augmented shortcuts."""

        reduction: int = 32
        """r: how many times narrower than the model a bottleneck is."""
        count: int = 1
        """How many bottlenecks each block has."""

    def __init__(self, placement: Placement, config: Config, norm: str, has_channel: bool) -> None:
        super().__init__(placement, config, norm, has_channel)
        if not 1 <= config.reduction <= placement.width:
            raise ValueError(f"augmented: reduction is {config.reduction}; 1 to the width {placement.width} is allowed")
        if config.count < 1:
            raise ValueError(f"augmented: count is {config.count}; at least 1 is needed")
        inner = placement.width // config.reduction
        self.mixer_norm = self.norm()
        self.shortcuts = nn.ModuleList(_Bottleneck(placement.width, inner) for _ in range(config.count))
        if has_channel:
            self.channel_norm = self.norm()

    def forward(self, x: Tensor, mix: Branch, channel: Branch | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        n = self.mixer_norm(x)
        x = x + mix(n)
        for shortcut in self.shortcuts:
            x = x + shortcut(n)
        return x if channel is None else x + channel(self.channel_norm(x))


class _Bottleneck(nn.Module):
    """D -> D/r -> D."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(functional.gelu(self.down(x)))
        return y
