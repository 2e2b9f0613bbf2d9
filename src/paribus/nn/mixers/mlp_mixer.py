"""MLP-Mixer's token mixing: an MLP along the tokens, causal by triangular maps.

    hidden[i] = gelu(Σ_{j ≤ i} A[i, j] x[j])      y[i] = Σ_{j ≤ i} B[i, j] hidden[j]

Paper:    Tolstikhin et al. 2021, arXiv:2105.01601
Differs:  causal, with as many hidden units as positions, so that both maps can be triangular; their rows are
          scaled by √(max_length / (i + 1)), so that every position begins with the same variance; each head
          of channels has its own maps; no biases. causal=False drops the condition and the scale
Shapes:   A, B [H, M, M] with M = max_length; x in heads [B, T, H, D / H]; i and j are true positions in the
          segment; state: all past x and hidden
Cost:     4 T D FLOPs a token; 2 H M² parameters; state 2 D numbers for each past token
Raises:   ValueError if num_heads does not divide the width, or a segment is longer than max_length
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.tokens import mix_tokens
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..segments import Rows


class MLPMixerState(NamedTuple):
    """What each of the two maps has read so far."""

    inputs: Tensor | None
    """[B, S, H, V]."""
    hidden: Tensor | None
    """[B, S, H, V]."""


class MLPMixer(Mixer):
    """Token-mixing MLP with a bound on the length."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the token-mixing MLP."""

        num_heads: int = 1
        """Groups of channels that have their own maps."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        check_divisible(placement.width, config.num_heads, "mlp_mixer")
        shape = (config.num_heads, placement.max_length, placement.max_length)
        self.first = nn.Parameter(torch.empty(shape))
        self.second = nn.Parameter(torch.empty(shape))

    def mix(
        self, x: Tensor, rows: Rows, state: MLPMixerState | None, context: Context | None
    ) -> tuple[Tensor, MLPMixerState]:
        """Both maps refuse what is longer than they are."""
        inputs, hidden = state or (None, None)
        causal, scale = self.placement.causal, self._scale(rows, x.dtype)
        y, inputs = mix_tokens(
            split_heads(x, self.config.num_heads), self.first, rows=rows, state=inputs, causal=causal
        )
        y, hidden = mix_tokens(functional.gelu(scale * y), self.second, rows=rows, state=hidden, causal=causal)
        return (scale * y).flatten(2), MLPMixerState(inputs, hidden)

    def _scale(self, rows: Rows, dtype: torch.dtype) -> Tensor | float:
        """Of the maps' rows, as [B, T, 1, 1] at their outputs, which are fewer numbers."""
        if not self.placement.causal:
            return 1.0
        read = rows.positions.clamp(min=0) + 1
        return (self.placement.max_length / read).sqrt().to(dtype)[..., None, None]

    def reset_parameters(self) -> None:
        """Normal with variance 1 / M, so that unit inputs give unit outputs."""
        nn.init.normal_(self.first, std=self.placement.max_length**-0.5)
        nn.init.normal_(self.second, std=self.placement.max_length**-0.5)
