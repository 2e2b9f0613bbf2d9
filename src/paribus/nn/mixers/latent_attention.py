"""Multi-head latent attention (MLA): keys and values are made of one small vector a token, which is all that is kept.

    c = norm(W_c x)      k = [W_k c, R W_r x]      v = W_v c      q = [W_q x, R W_p x]
    o[t] = Σ_{s ≤ t} softmax_s(q[t]·k[s] / √(K + P)) v[s]        y = W_o o

Paper:    DeepSeek-AI 2024, arXiv:2405.04434, section 2.1; the code in transformers was read, nothing was copied
Differs:  rotary channel i is paired with i + P/2; keys and values are made of all latents again for each new token,
          not absorbed into queries and outputs; causal=False drops the condition s ≤ t
Shapes:   c [B, T, L], L = key_latent D; q, k [B, T, H, K + P], v [B, T, H, K] with K = D / H, P = rotary_width K, the
          rotated part of the key one for all heads; with query_latent, q is made of norm(W x) [B, T, query_latent D];
          state: all c and rotated keys
Cost:     2 D (2 D + H P + 3 L + P) + 2 T (2 D + H P) FLOPs a token without query_latent; state L + P numbers for each
          past token
Raises:   ValueError if num_heads does not divide the width, a latent has no channel, or P is odd or zero
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..kernels.attention import AttentionHistory, attention
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..positions import rotary_tables, rotate
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"key_latent": 0.1, "query_latent": 0.3, "initialization": "paper"},
}


class LatentAttention(Mixer):
    """Attention over keys and values that are kept as one latent vector."""

    @dataclass(frozen=True)
    class Config:
        """Settings of latent attention."""

        num_heads: int = 4
        key_latent: float = 0.25
        """L / D."""
        query_latent: float = 0.0
        """Width of the vector that queries are made of, relative to D; 0 makes them of x."""
        rotary_width: float = 0.5
        """P / K."""
        rotary_base: float = 10_000.0
        initialization: Literal["house", "paper"] = "house"
        """paper: all linear maps normal with std 0.006."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        self.head_width = check_divisible(width, heads, "latent_attention")
        self.rotary_width = int(config.rotary_width * self.head_width)
        if self.rotary_width < 2 or self.rotary_width % 2:
            raise ValueError(f"rotary_width {config.rotary_width} of {self.head_width} is no even number of channels")
        latent, query_latent = int(config.key_latent * width), int(config.query_latent * width)
        if latent < 1 or (config.query_latent != 0 and query_latent < 1):
            raise ValueError(
                f"key_latent {config.key_latent} and query_latent {config.query_latent} of {width} channels"
            )
        self.latent = nn.Linear(width, latent, bias=False)
        self.latent_norm = RMSNorm(latent)
        self.rotary_key = nn.Linear(width, self.rotary_width, bias=False)
        self.key = nn.Linear(latent, width, bias=False)
        self.value = nn.Linear(latent, width, bias=False)
        self.query_latent = nn.Linear(width, query_latent, bias=False) if query_latent else None
        self.query_norm = RMSNorm(query_latent) if query_latent else None
        self.query = nn.Linear(query_latent or width, width + heads * self.rotary_width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: AttentionHistory | None, context: Context | None
    ) -> tuple[Tensor, AttentionHistory]:
        """Attend; latents are kept normalised and the rotary key rotated."""
        tables = rotary_tables(rows.positions, self.rotary_width, self.config.rotary_base, x.dtype, context)
        c = self.latent_norm(self.latent(x))[:, :, None]  # B T 1 C
        rotary_key = rotate(self.rotary_key(x)[:, :, None], *tables)  # B T 1 P
        if self.query_latent is not None and self.query_norm is not None:
            x = self.query_norm(self.query_latent(x))
        plain, rotary = split_heads(self.query(x), self.config.num_heads).split(
            [self.head_width, self.rotary_width], -1
        )
        o, state = attention(
            torch.cat([plain, rotate(rotary, *tables)], -1),
            c,
            rotary_key,
            rows=rows,
            state=state,
            causal=self.placement.causal,
            scale=(self.head_width + self.rotary_width) ** -0.5,
            expand=self._expand,
        )
        return self.output(o.flatten(2)), state

    def _expand(self, c: Tensor, rotary_key: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, S, H, K + P] and values [B, S, H, K] of what is kept."""
        k, v = (split_heads(part(c[:, :, 0]), self.config.num_heads) for part in (self.key, self.value))
        return torch.cat([k, rotary_key.to(k.dtype).expand(-1, -1, k.shape[2], -1)], -1), v

    def reset_parameters(self) -> None:
        """As the paper, if asked to."""
        if self.config.initialization == "paper":
            for part in self.children():
                if isinstance(part, nn.Linear):
                    nn.init.normal_(part.weight, std=0.006)
