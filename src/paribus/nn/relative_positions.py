"""Linearised relative positions (LRPE): queries and keys turned so that their product depends on the distance only.

With angles θ of each head's own, positions t of the query and s of the key:

    rotation    pairs of channels are rotated by t θ:    q · k becomes Re Σ_c q_c conj(k_c) exp(i (t - s) θ_c)
    cosine      [x cos(t θ), x sin(t θ)], twice as wide:    q · k becomes Σ_c q_c k_c cos((t - s) θ_c)

A state of linear attention sees features, so both leave its kernel as it is (Qin et al. 2023, arXiv:2307.09270).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from .positions import once
from .segments import Rows

BASE = 10_000.0

Kind = Literal["rotation", "cosine"]


def turned_by_rotation(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """q · k becomes Re Σ_c q_c conj(k_c) exp(i (t − s) θ_c), θ learned (LRPE; Qin et al. 2023, arXiv:2307.09270)."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)


def turned_to_cosines(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """q · k becomes Σ_c q_c k_c cos((t − s) θ_c), features twice as wide (LRPE; Qin et al. 2023, arXiv:2307.09270)."""
    return torch.cat([x * cosine, x * sine], -1)


RELATIVE_POSITIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "rotation": turned_by_rotation,
    "cosine": turned_to_cosines,
}


class RelativePositions(nn.Module):
    """x [B, T, H, K] -> x turned, [B, T, H, K] for "rotation", [B, T, H, 2 K] for "cosine".

    Angles begin as base^(-2 i / K) for pair i of any head (rotation), or base^(-2 j / (H K)) for channel j of all
    heads together (cosine), as in the published code of TransNormerLLM.

    Args:
        learned: learn what is added to each angle; else they stay as they begin.

    Raises:
        ValueError: rotation of an odd number of channels.
    """

    def __init__(self, kind: Kind, num_heads: int, head_width: int, learned: bool) -> None:
        super().__init__()
        if kind == "rotation" and head_width % 2:
            raise ValueError(f"position 'rotation' needs an even head width; it is {head_width}")
        self.kind = kind
        self.shape = (num_heads, head_width // 2 if kind == "rotation" else head_width)
        self.shift = nn.Parameter(torch.empty(self.shape)) if learned else None

    def forward(self, *features: Tensor, rows: Rows) -> list[Tensor]:
        """All `features` turned by the positions of `rows`."""
        angles = self.angles(rows, features[0].dtype)
        cosine, sine = angles.cos(), angles.sin()
        turn = RELATIVE_POSITIONS[self.kind]
        return [turn(x, cosine, sine).to(x.dtype) for x in features]

    def angles(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        """t θ, [B or 1, T, H, K / 2 or K], in float32 or wider."""
        wide = torch.promote_types(dtype, torch.float32)
        exponents = torch.arange(self.shape[1], dtype=wide, device=rows.positions.device) / self.shape[1]
        if self.kind == "cosine":
            heads = torch.arange(self.shape[0], dtype=wide, device=rows.positions.device)
            exponents = 2 * (heads[:, None] + exponents) / self.shape[0]
        angles = (BASE**-exponents).expand(self.shape)
        if self.shift is not None:
            angles = angles + self.shift.to(wide)
        return once(rows.positions)[..., None, None].to(wide) * angles

    def reset_parameters(self) -> None:
        """Angles begin where they are defined to."""
        if self.shift is not None:
            nn.init.zeros_(self.shift)
