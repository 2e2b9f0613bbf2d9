"""Normalised attention (nGPT): queries and keys of length one, times a learned scale for each channel.

    q, k = s ⊙ R W x / ‖W x‖        o[t] = Σ_{s ≤ t} softmax_s(√K q[t]·k[s]) v[s]        y = W_o o

Paper:    Loshchilov, Hsieh, Sun and Ginsburg 2024, arXiv:2410.01131
Differs:  the weights' rows are not brought back to length one after each step, and the residual stream is as long as
          the block makes it: both are more than a mixer's work; causal=False drops the condition s ≤ t
Shapes:   q, k, v [B, T, H, K], K = D / H; s [H, K], learned as s / √D, so that it moves √D times as fast, as in the
          paper; state: all keys and values
Cost:     8 D² + 4 T D FLOPs a token; state 2 D numbers for each past token
Raises:   ValueError if num_heads does not divide the width, or K is odd
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.attention import AttentionHistory, attention
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..positions import rotary_tables, rotate
from ..segments import Rows


class NormalisedAttention(Mixer):
    """Attention by cosines."""

    @dataclass(frozen=True)
    class Config:
        """Settings of normalised attention."""

        num_heads: int = 4
        rotary_base: float = 10_000.0

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        self.head_width = check_divisible(width, heads, "normalised_attention")
        if self.head_width % 2:
            raise ValueError(f"rotary positions need an even head width; width / num_heads is {self.head_width}")
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.empty(heads, self.head_width))  # s / √D

    def mix(
        self, x: Tensor, rows: Rows, state: AttentionHistory | None, context: Context | None
    ) -> tuple[Tensor, AttentionHistory]:
        """Attend; a rotation changes no length, so that it may come first."""
        q, k, v = (split_heads(part(x), self.config.num_heads) for part in (self.query, self.key, self.value))
        tables = rotary_tables(rows.positions, self.head_width, self.config.rotary_base, q.dtype, context)
        scale = self.scale * self.placement.width**0.5
        q, k = (functional.normalize(rotate(t, *tables), dim=-1) * scale for t in (q, k))
        causal = self.placement.causal
        o, state = attention(q, k, v, rows=rows, state=state, causal=causal, scale=self.head_width**0.5)
        return self.output(o.flatten(2)), state

    def reset_parameters(self) -> None:
        """s one."""
        nn.init.constant_(self.scale, self.placement.width**-0.5)
