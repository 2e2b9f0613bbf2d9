"""Stick-breaking attention: from its neighbour outwards, each token takes a share of what is left of a query's stick.

    β[t, s] = sigmoid(q[t]·k[s] / √K)        o[t] = Σ_{s < t} β[t, s] Π_{s < r < t} (1 − β[t, r]) v[s]        y = W_o o
    with remainder: o[t] += Π_{r < t} (1 − β[t, r]) u, u learned;  with output_norm: y = W_o norm(o)

Paper:    Tan, Yang, Courville, Panda and Shen 2024, arXiv:2410.17980; remainder and norm as its released 3B model
Differs:  no biases; output_norm is an RMS norm in each head with weights shared between heads, in the released model a
          group norm; causal=False breaks a second stick towards the row's end, and o sums both
Shapes:   q [B, T, H, K]; k, v [B, T, H / queries_per_key, K] with K = D / H; state: all keys and values
Cost:     8 D² + 4 T D FLOPs a token (without grouping), and T x T numbers for each head; state 2 D numbers for each
          past token
Raises:   ValueError if num_heads does not divide the width, or queries_per_key not num_heads
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.attention import AttentionHistory, attention
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "released": {"remainder": True, "output_norm": True},
    "grouped": {"num_heads": 4, "queries_per_key": 2},
}


class StickBreakingAttention(Mixer):
    """Attention by breaking sticks; it needs no positions."""

    @dataclass(frozen=True)
    class Config:
        """Settings of stick-breaking attention."""

        num_heads: int = 4
        queries_per_key: int = 1
        """Query heads that share one key and value head."""
        remainder: bool = False
        """Spend what is left of the stick on a learned value for each head, zero at first."""
        output_norm: bool = False

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        self.head_width = check_divisible(width, heads, "stick_breaking_attention")
        if config.queries_per_key < 1 or heads % config.queries_per_key:
            raise ValueError(f"queries_per_key {config.queries_per_key} does not divide num_heads {heads}")
        self.num_keys = heads // config.queries_per_key
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, self.num_keys * self.head_width, bias=False)
        self.value = nn.Linear(width, self.num_keys * self.head_width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.rest = nn.Parameter(torch.empty(heads, self.head_width)) if config.remainder else None  # u
        self.norm = RMSNorm(self.head_width) if config.output_norm else None

    def mix(
        self, x: Tensor, rows: Rows, state: AttentionHistory | None, context: Context | None
    ) -> tuple[Tensor, AttentionHistory]:
        """Attend; a token does not see itself."""
        q = split_heads(self.query(x), self.config.num_heads)  # B T H K
        k, v = (split_heads(project(x), self.num_keys) for project in (self.key, self.value))  # B T G K
        o, state = attention(
            q,
            k,
            v,
            rows=rows,
            state=state,
            causal=self.placement.causal,
            scale=self.head_width**-0.5,
            normaliser="stick_breaking",
            slot=None if self.rest is None else (None, self.rest),
        )
        if self.norm is not None:
            o = self.norm(o)
        return self.output(o.flatten(2)), state

    def reset_parameters(self) -> None:
        """The rest's value zero, as the released model's."""
        if self.rest is not None:
            nn.init.zeros_(self.rest)
