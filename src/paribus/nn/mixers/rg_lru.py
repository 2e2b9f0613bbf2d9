"""Griffin's recurrent block: a gated linear recurrence behind a short convolution, times a GELU branch.

    u = short_convolution(W_x x)      r, i = sigmoid(W_r u), sigmoid(W_i u)      log a = −c softplus(Λ) r
    h[t] = a[t] ⊙ h[t−1] + √(1 − a[t]²) ⊙ i[t] ⊙ u[t]      y = W_o (gelu(W_g x) ⊙ h)

Paper:    De et al. 2024, arXiv:2402.19427
Differs:  no biases; at the beginning decays at r = 1 lie between 0.9 and 0.999 as in the paper, but uniform
          in Λ, about the logarithm of the memory's length; causal=False sums both directions behind a centred
          convolution
Shapes:   h [B, T, E], E = expansion · D rounded to heads; W_r, W_i block-diagonal, one block for each head;
          state: the convolution's last taps - 1 inputs and h, taps · E numbers
Cost:     6 D E + 4 E² / num_heads FLOPs a token
Raises:   ValueError if num_heads or taps is less than one, or expansion not positive
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.convolution import short_convolution
from ..kernels.scan import scan
from ..mixer import Context, Mixer, Placement, split_heads
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {"griffin": {"expansion": 4 / 3}, "recurrent_gemma": {"expansion": 1.0}}

STRENGTH = 8.0  # the paper's c
DECAYS = (0.999, 0.9)  # the slowest and the fastest at the beginning, for a step with r = 1


class RGLRUState(NamedTuple):
    """What the block carries from token to token."""

    inputs: Tensor | None
    """[B, taps - 1, E]: the short convolution's."""
    hidden: Tensor | None
    """[B, E]: h."""


class RGLRU(Mixer):
    """Real-gated linear recurrent unit (RG-LRU) in Griffin's block."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the recurrent block."""

        num_heads: int = 4
        """Blocks of the two gates' maps."""
        expansion: float = 4 / 3
        """E / D."""
        taps: int = 4
        """Tokens that the short convolution sees, the present one included."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        for name in ("num_heads", "taps"):
            if getattr(config, name) < 1:
                raise ValueError(f"rg_lru: {name} is {getattr(config, name)}; at least 1 is needed")
        if config.expansion <= 0:
            raise ValueError(f"rg_lru: expansion is {config.expansion}; a positive number is needed")
        width, heads = placement.width, config.num_heads
        head_width = max(1, round(config.expansion * width / heads))
        expanded = heads * head_width
        self.gate = nn.Linear(width, expanded, bias=False)
        self.input = nn.Linear(width, expanded, bias=False)
        self.output = nn.Linear(expanded, width, bias=False)
        self.convolution = nn.Parameter(torch.empty(expanded, config.taps))
        self.recurrence_gate = nn.Parameter(torch.empty(heads, head_width, head_width))
        self.input_gate = nn.Parameter(torch.empty(heads, head_width, head_width))
        self.rate = nn.Parameter(torch.empty(expanded))  # Λ

    def mix(
        self, x: Tensor, rows: Rows, state: RGLRUState | None, context: Context | None
    ) -> tuple[Tensor, RGLRUState]:
        """The recurrence runs in float32 or wider."""
        inputs, hidden = state or (None, None)
        causal = self.placement.causal
        u, inputs = short_convolution(self.input(x), self.convolution, rows=rows, state=inputs, causal=causal)
        compute = torch.promote_types(u.dtype, torch.float32)
        blocks = split_heads(u, self.config.num_heads)
        recurrence, take = (
            torch.einsum("bthi,hij->bthj", blocks, weight).flatten(2).to(compute).sigmoid()
            for weight in (self.recurrence_gate, self.input_gate)
        )
        log_decay = -STRENGTH * functional.softplus(self.rate.to(compute)) * recurrence
        room = -torch.expm1(2 * log_decay)  # 1 − a²; clamped only where its root would have no slope
        taken = room.clamp(min=torch.finfo(compute).tiny).sqrt() * take * u
        h, hidden = scan(taken, log_decay, rows=rows, state=hidden, causal=causal)
        return self.output(functional.gelu(self.gate(x)) * h.to(u.dtype)), RGLRUState(inputs, hidden)

    def reset_parameters(self) -> None:
        """Maps and taps by their fan-in; Λ so that memories last from ten to a thousand tokens."""
        nn.init.normal_(self.convolution, std=self.config.taps**-0.5)
        for weight in (self.recurrence_gate, self.input_gate):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        slow, fast = (math.log(math.expm1(-math.log(decay) / STRENGTH)) for decay in DECAYS)
        nn.init.uniform_(self.rate, slow, fast)
