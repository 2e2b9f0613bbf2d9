"""CONTAINER: a learned mixture of two affinities between tokens, softmax attention and a static matrix.

    o[i] = α Σ_{j ≤ i} softmax_j(q[i] · k[j] / √K) v[j] + β Σ_{j ≤ i} S[i, j] v[j]          y = W_o o

Paper:    Gao et al. 2021, arXiv:2106.01401; "fixed": α = β = 1, as the published configuration of HomebrewNLP-MTF
          (2021) has it, which divides the scores by √max_length; read, nothing copied
Differs:  causal; α and β are numbers for each head, at the beginning 1, and S is normal with std 0.05 / √max_length
          (the configuration's 0.004 at its 128 tokens); no biases, no positions but S unless "rotary". causal=False
          drops the condition
Shapes:   q, k, v [B, T, H, K], K = D / H; S [H, M, M] with M = max_length; i and j are true positions in the segment;
          state: all keys and values, which serve both
Cost:     8 D² + 5 T D FLOPs a token (causal), T D more otherwise; H M² parameters for S; state 2 D numbers for each
          past token
Raises:   ValueError if num_heads does not divide the width, K is odd with rotary, or a segment is longer than
          max_length
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..kernels.alignment import history_of
from ..kernels.attention import AttentionHistory, attention
from ..kernels.tokens import mix_tokens
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..positions import rotary_tables, rotate
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {"fixed": {"coefficients": "fixed"}}


class Container(Mixer):
    """Attention plus a static token matrix, with a bound on the length."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the mixture."""

        num_heads: int = 4
        coefficients: Literal["learned", "fixed"] = "learned"
        """α and β: learned for each head, or 1."""
        position: Literal["rotary", "none"] = "none"
        rotary_base: float = 10_000.0

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads, M = placement.width, config.num_heads, placement.max_length
        self.head_width = check_divisible(width, heads, "container")
        if config.position == "rotary" and self.head_width % 2:
            raise ValueError(f"rotary positions need an even head width; width / num_heads is {self.head_width}")
        learned = config.coefficients == "learned"
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.static = nn.Parameter(torch.empty(heads, M, M))
        self.dynamic_weight = nn.Parameter(torch.empty(heads)) if learned else None
        self.static_weight = nn.Parameter(torch.empty(heads)) if learned else None
        self.output = nn.Linear(width, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: AttentionHistory | None, context: Context | None
    ) -> tuple[Tensor, AttentionHistory]:
        """The static matrix refuses what is longer than it is."""
        heads, causal = self.config.num_heads, self.placement.causal
        q, k, v = (split_heads(project(x), heads) for project in (self.query, self.key, self.value))  # B T H K
        if self.config.position == "rotary":
            tables = rotary_tables(rows.positions, self.head_width, self.config.rotary_base, q.dtype, context)
            q, k = rotate(q, *tables), rotate(k, *tables)
        past = None
        if state is not None and rows.past is not None:
            past = history_of(state.values, state.ids, state.positions, rows.past)
        static, _ = mix_tokens(v, self.static, rows=rows, state=past, causal=causal)
        dynamic, state = attention(q, k, v, rows=rows, state=state, causal=causal, scale=self.head_width**-0.5)
        if self.dynamic_weight is not None and self.static_weight is not None:
            dynamic = self.dynamic_weight.to(x.dtype)[:, None] * dynamic
            static = self.static_weight.to(x.dtype)[:, None] * static
        return self.output((dynamic + static).flatten(2)), state

    def reset_parameters(self) -> None:
        """Coefficients 1, the static matrix small."""
        nn.init.normal_(self.static, std=0.05 * self.placement.max_length**-0.5)
        for weight in (self.dynamic_weight, self.static_weight):
            if weight is not None:
                nn.init.ones_(weight)
