"""Axial MLP over tokens: one map over every P-th token, an activation, one map over the last P tokens.

    h[a, b] = leaky_relu(Σ_{c ≤ a} A[a, c] x[c, b])
    y[a, b] = Σ_{c ≤ b} B[b, c] h[a, c] + Σ_{c > b} B[b, c] h[a−1, c]

with position i = a P + b. Each token of the past reaches y[i] on exactly one way.

Paper:    Olmax (ClashLuke and HomebrewNLP 2022), whose code was read and not copied; it was published as code only
Differs:  Olmax mixes one axis a layer; "olmax" does so, both maps along rows in even layers and along columns in odd
          ones, with a norm between, RMSNorm being √D times its L2 norm, and initial values of the house. Otherwise
          strided and local mixing are one mixer, and the local map reads the last P tokens in place of the row so far,
          since a row's first token would never hear of its predecessors. Each head of channels has its own maps; rows
          of causal maps are scaled by √(size / tokens read), so that every position begins with the same variance.
          causal=False drops the conditions and the scale, and c > b is read from the own row where that is the first
Shapes:   A [H, ⌈M / P⌉, ⌈M / P⌉], B [H, P, P] with M = max_length; x in heads [B, T, H, D / H]; i is the true position
          in the segment; state: all past x and h
Cost:     2 D (T / P + 2 P) FLOPs a token, O(√T) with P = √T; H (P² + (M / P)²) parameters; state 2 D numbers for
          each past token
Raises:   ValueError if num_heads does not divide the width, period is negative, or a segment is longer than max_length
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.axial import Axis, mix_axis
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "olmax": {"axes": "alternating", "local": "row", "hidden_norm": True, "row_scale": False},
    "rows": {"local": "row"},
}


class AxialState(NamedTuple):
    """What each of the two maps has read so far."""

    inputs: Tensor | None
    """[B, S, H, V]."""
    hidden: Tensor | None
    """[B, S, H, V]."""


class AxialMLPMixer(Mixer):
    """Token-mixing MLP along two axes of the positions, with a bound on the length."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the axial token-mixing MLP."""

        num_heads: int = 1
        """Groups of channels that have their own maps."""
        period: int = 0
        """P, the distance of what a strided map reads; 0 is the square root of max_length, rounded up."""
        axes: Literal["both", "alternating"] = "both"
        """The first map strided, the second local; or both local in even layers and both strided in odd ones."""
        local: Literal["window", "row"] = "window"
        """What a local map reads: the last P tokens, or the row so far, of max_length / P tokens."""
        hidden_norm: bool = False
        """RMSNorm over the width, before the activation."""
        row_scale: bool = True
        """Give every position of a causal map the same variance."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        check_divisible(placement.width, config.num_heads, "axial_mlp_mixer")
        if config.period < 0:
            raise ValueError(f"axial_mlp_mixer: period is {config.period}; 0 or a positive number is needed")
        M = placement.max_length
        stride = config.period or math.isqrt(M - 1) + 1
        count = -(-M // stride)
        strided: tuple[Axis, int, int] = ("column", stride, count)
        local: tuple[Axis, int, int] = (config.local, *((stride,) * 2 if config.local == "window" else (count,) * 2))
        self.maps = (strided, local)
        """Axis, period and size of both."""
        if config.axes == "alternating":
            self.maps = (strided, strided) if placement.layer % 2 else (local, local)
        self.first, self.second = (nn.Parameter(torch.empty(config.num_heads, size, size)) for _, _, size in self.maps)
        self.norm = RMSNorm(placement.width) if config.hidden_norm else None

    def mix(
        self, x: Tensor, rows: Rows, state: AxialState | None, context: Context | None
    ) -> tuple[Tensor, AxialState]:
        """A map that reads columns refuses what is longer than it is."""
        inputs, hidden = state or (None, None)
        y, inputs = self._along(x, 0, rows, inputs)
        y = functional.leaky_relu(y if self.norm is None else self.norm(y))
        y, hidden = self._along(y, 1, rows, hidden)
        return y, AxialState(inputs, hidden)

    def _along(self, x: Tensor, which: int, rows: Rows, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One of the maps: [B, T, D] -> [B, T, D]."""
        (axis, period, size), matrix = self.maps[which], (self.first, self.second)[which]
        y, state = mix_axis(
            split_heads(x, self.config.num_heads),
            matrix,
            axis,
            period=period,
            longest=self.placement.max_length,
            rows=rows,
            state=state,
            causal=self.placement.causal,
        )
        y = y.flatten(2)
        if self.placement.causal and self.config.row_scale:
            i = rows.positions.clamp(min=0)
            before = {"column": i // period, "row": i % period, "window": i.clamp(max=period - 1)}[axis]
            read = (before + 1).to(torch.promote_types(x.dtype, torch.float32))
            y = y * (size / read).sqrt().to(x.dtype)[..., None]
        return y, state

    def reset_parameters(self) -> None:
        """Normal with variance 1 / size, so that unit inputs give unit outputs."""
        for matrix in (self.first, self.second):
            nn.init.normal_(matrix, std=matrix.shape[-1] ** -0.5)
