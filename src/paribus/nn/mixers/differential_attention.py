"""Differential attention: the difference of two softmax attentions, in which what both attend to cancels.

    o[t] = Σ_{s ≤ t} (softmax_s(q₁[t]·k₁[s] / √K) − λ softmax_s(q₂[t]·k₂[s] / √K)) v[s]
    λ = exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ₀        λ₀ = 0.8 − 0.6 exp(−0.3 layer)
    y = W_o ((1 − λ₀) norm(o))

Paper:    Ye et al. 2024, arXiv:2410.05258; its published code was read, nothing was copied
Differs:  rotary channel i is paired with i + K/2; causal=False drops the condition s ≤ t
Shapes:   q, k [B, T, 2 H, K], v [B, T, H, 2 K] with K = D / 2H: heads 2h and 2h + 1 share value h; λ one number for the
          layer, layers counting from 0; state: all keys and values
Cost:     8 D² + 8 T D FLOPs a token, as queries and keys are padded to the width of values; state 2 D numbers for each
          past token
Raises:   ValueError if 2 num_heads does not divide the width, or K is odd
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..kernels.attention import AttentionHistory, attention
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..positions import rotary_tables, rotate
from ..segments import Rows


class DifferentialAttention(Mixer):
    """The difference of two attentions over the same values."""

    @dataclass(frozen=True)
    class Config:
        """Settings of differential attention."""

        num_heads: int = 4
        """Pairs of attentions: half as many as the heads of an attention with keys of the same width."""
        rotary_base: float = 10_000.0

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        self.head_width = check_divisible(width, 2 * heads, "differential_attention: two keys a head")
        if self.head_width % 2:
            raise ValueError(f"rotary positions need keys of even width; width / 2 num_heads is {self.head_width}")
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.lambda_query = nn.Parameter(torch.empty(2, self.head_width))
        self.lambda_key = nn.Parameter(torch.empty(2, self.head_width))
        self.norm = RMSNorm(2 * self.head_width)
        self.lambda_start = 0.8 - 0.6 * math.exp(-0.3 * placement.layer)  # λ₀

    def mix(
        self, x: Tensor, rows: Rows, state: AttentionHistory | None, context: Context | None
    ) -> tuple[Tensor, AttentionHistory]:
        """Attend twice and subtract; λ is computed in float32 or wider."""
        heads = self.config.num_heads
        q, k = (split_heads(project(x), 2 * heads) for project in (self.query, self.key))  # B T 2H K
        v = split_heads(self.value(x), heads)  # B T H 2K
        tables = rotary_tables(rows.positions, self.head_width, self.config.rotary_base, q.dtype, context)
        q, k = rotate(q, *tables), rotate(k, *tables)
        causal, scale = self.placement.causal, self.head_width**-0.5
        o, state = attention(q, k, v, rows=rows, state=state, causal=causal, scale=scale)
        wide = torch.promote_types(self.lambda_query.dtype, torch.float32)
        first, second = (self.lambda_query.to(wide) * self.lambda_key.to(wide)).sum(-1).exp().unbind()
        one, other = o.unflatten(2, (heads, 2)).unbind(3)
        o = self.norm(one - (first - second + self.lambda_start).to(o.dtype) * other)
        return self.output((1 - self.lambda_start) * o.flatten(2)), state

    def reset_parameters(self) -> None:
        """The vectors that make up λ normal with std 0.1, as the paper."""
        for weight in (self.lambda_query, self.lambda_key):
            nn.init.normal_(weight, std=0.1)
