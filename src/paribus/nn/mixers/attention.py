"""Softmax attention with rotary positions, grouped keys and an optional window.

    o[t] = Σ_{s ≤ t} softmax_s(R_t q[t] · R_s k[s] / √K) v[s]          y = W_o o

Paper:    Vaswani et al. 2017, arXiv:1706.03762; rotary: Su et al. 2021, arXiv:2104.09864; grouped queries: Ainslie
          et al. 2023, arXiv:2305.13245; window: Beltagy et al. 2020, arXiv:2004.05150
Differs:  no biases (as Llama); causal=False drops the condition s ≤ t
Shapes:   q [B, T, H, K]; k, v [B, T, H / queries_per_key, K] with K = D / H; state: all keys, values, or the window's
Cost:     8 D² + 4 T D FLOPs a token (without grouping); state 2 D numbers for each past token
Raises:   ValueError if num_heads does not divide the width, queries_per_key not num_heads, or K is odd with rotary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ..kernels.attention import AttentionHistory, attention
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..positions import rotary_tables, rotate
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "multi_query": {"num_heads": 4, "queries_per_key": 4},
    "local": {"window": 128},
    "no_position": {"position": "none"},
}


class Attention(Mixer):
    """Multi-head softmax attention."""

    @dataclass(frozen=True)
    class Config:
        """Settings of attention."""

        num_heads: int = 4
        queries_per_key: int = 1
        """Query heads that share one key and value head; num_heads makes it multi-query."""
        window: int = 0
        """True positions seen to each side, the token's own included; 0 is no limit."""
        position: Literal["rotary", "none"] = "rotary"
        rotary_base: float = 10_000.0

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width = placement.width
        self.head_width = check_divisible(width, config.num_heads, "attention")
        if config.queries_per_key < 1 or config.num_heads % config.queries_per_key:
            raise ValueError(f"queries_per_key {config.queries_per_key} does not divide num_heads {config.num_heads}")
        if config.position == "rotary" and self.head_width % 2:
            raise ValueError(f"rotary positions need an even head width; width / num_heads is {self.head_width}")
        if config.window < 0:
            raise ValueError(f"window is {config.window}; 0 (no limit) or a positive number of tokens is needed")
        self.num_keys = config.num_heads // config.queries_per_key
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, self.num_keys * self.head_width, bias=False)
        self.value = nn.Linear(width, self.num_keys * self.head_width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: AttentionHistory | None, context: Context | None
    ) -> tuple[Tensor, AttentionHistory]:
        """Attend; keys are kept rotated, as true positions never change."""
        q = split_heads(self.query(x), self.config.num_heads)  # B T H K
        k, v = (split_heads(project(x), self.num_keys) for project in (self.key, self.value))  # B T G K
        if self.config.position == "rotary":
            tables = rotary_tables(rows.positions, self.head_width, self.config.rotary_base, q.dtype, context)
            q, k = rotate(q, *tables), rotate(k, *tables)
        o, state = attention(
            q,
            k,
            v,
            rows=rows,
            state=state,
            causal=self.placement.causal,
            scale=self.head_width**-0.5,
            window=self.config.window,
        )
        return self.output(o.flatten(2)), state
