"""Forgetting attention (FoX): softmax attention whose scores fall by what each token between has the row forget.

    f[t] = sigmoid(W_f x[t] + b_f)        F[t] = Σ_{r ≤ t} log f[r]
    o[t] = Σ_{s ≤ t} softmax_s(q[t]·k[s] / √K + F[t] − F[s]) v[s]        y = W_o o
    Pro: k, v = (1 − α) W x + α (W x)[t−1], α = sigmoid(W_α x);  q, k ← norm;  y = W_o (sigmoid(W_g x) ⊙ norm(o))

Paper:    Lin, Nikishin, He and Courville 2025, arXiv:2503.02130; its published code was read, nothing was copied
Differs:  norms share their weights between heads; causal=False takes −|F[t] − F[s]|, what the tokens from one to the
          other forget, and shifts by the mean of both neighbours
Shapes:   q, k, v [B, T, H, K], K = D / H; f [B, T, H]; state: all keys, values and F, with shift W_k x and W_v x of the
          last token
Cost:     8 D² + 2 D H + 4 T (D + 2 H) FLOPs a token (10 D² with gate, 4 D H more with shift); state 2 D + H numbers
          for each past token, F in float32
Raises:   ValueError if num_heads does not divide the width, or K is odd with rotary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.attention import AttentionHistory, attention
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..positions import rotary_tables, rotate
from ..segments import Rows
from ..token_shift import shift_tokens

PRESETS: dict[str, dict[str, Any]] = {
    "pro": {"shift": True, "query_key_norm": True, "output_norm": True, "output_gate": True},
    "rotary": {"position": "rotary"},
    "paper": {"initialization": "paper"},
}


class ForgettingState(NamedTuple):
    """What the mixer carries from token to token."""

    last: Tensor | None
    """[B, 1, 2 D]: the last token's keys and values before the shift; None without one."""
    history: AttentionHistory | None


class ForgettingAttention(Mixer):
    """Softmax attention with a forget gate."""

    @dataclass(frozen=True)
    class Config:
        """Settings of forgetting attention."""

        num_heads: int = 4
        position: Literal["none", "rotary"] = "none"
        rotary_base: float = 500_000.0
        shift: bool = False
        """Mix each key and value with the one before, by a gate for each head."""
        query_key_norm: bool = False
        output_norm: bool = False
        output_gate: bool = False
        initialization: Literal["house", "paper"] = "house"
        """paper: all linear maps normal with std 0.02."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        self.head_width = check_divisible(width, heads, "forgetting_attention")
        if config.position == "rotary" and self.head_width % 2:
            raise ValueError(f"rotary positions need an even head width; width / num_heads is {self.head_width}")
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.forget = nn.Linear(width, heads)
        self.output = nn.Linear(width, width, bias=False)
        self.key_shift, self.value_shift = (
            nn.Linear(width, heads, bias=False) if config.shift else None for _ in range(2)
        )
        self.gate = nn.Linear(width, width, bias=False) if config.output_gate else None
        self.query_norm, self.key_norm = (RMSNorm(self.head_width) if config.query_key_norm else None for _ in "qk")
        self.norm = RMSNorm(self.head_width) if config.output_norm else None

    def mix(
        self, x: Tensor, rows: Rows, state: ForgettingState | None, context: Context | None
    ) -> tuple[Tensor, ForgettingState]:
        """Attend; the gates' logarithms are taken in float32 or wider."""
        last, history = state or (None, None)
        heads, causal = self.config.num_heads, self.placement.causal
        k, v, last = self._shifted(x, rows, last)
        q, k, v = (split_heads(part, heads) for part in (self.query(x), k, v))  # B T H K
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.config.position == "rotary":
            tables = rotary_tables(rows.positions, self.head_width, self.config.rotary_base, q.dtype, context)
            q, k = rotate(q, *tables), rotate(k, *tables)
        forget = self.forget(x)
        log_forget = functional.logsigmoid(forget.to(torch.promote_types(forget.dtype, torch.float32)))
        scale = self.head_width**-0.5
        o, history = attention(q, k, v, rows=rows, state=history, causal=causal, scale=scale, log_forget=log_forget)
        if self.norm is not None:
            o = self.norm(o)
        o = o.flatten(2)
        if self.gate is not None:
            o = o * self.gate(x).sigmoid()
        return self.output(o), ForgettingState(last, history)

    def _shifted(self, x: Tensor, rows: Rows, last: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        k, v = self.key(x), self.value(x)
        if self.key_shift is None or self.value_shift is None:
            return k, v, None
        before, last = shift_tokens(torch.cat([k, v], -1), rows=rows, state=last, causal=self.placement.causal)
        mixed = []
        for gate, own, other in zip((self.key_shift, self.value_shift), (k, v), before.chunk(2, -1), strict=True):
            share = gate(x).sigmoid().repeat_interleave(self.head_width, -1)
            mixed.append(torch.lerp(own, other, share))
        return mixed[0], mixed[1], last

    def reset_parameters(self) -> None:
        """As the paper's code, if asked to."""
        if self.config.initialization == "paper":
            for part in self.children():
                if isinstance(part, nn.Linear):
                    nn.init.normal_(part.weight, std=0.02)
