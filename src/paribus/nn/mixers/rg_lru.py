"""Griffin's recurrent block: a gated linear recurrence behind a short convolution, times a GELU branch.

    u = short_convolution(W_x x)      r, i = sigmoid(W_r u), sigmoid(W_i u)      log a = −c softplus(Λ) r
    h[t] = a[t] ⊙ h[t−1] + √(1 − a[t]²) ⊙ i[t] ⊙ u[t]      y = W_o (gelu(W_g x) ⊙ h)

Paper:    De et al. 2024, arXiv:2402.19427, section 2.4; RecurrentGemma in transformers 5, which starts at a² uniform, a
          from 0.9 to 0.999 for a step with r = 1/8, where the paper says r = 1; nothing copied
Differs:  no biases unless told; at the beginning decays at r = 1 lie between 0.9 and 0.999 as in the paper, but uniform
          in Λ, about the logarithm of the memory's length, unless told; causal=False sums both directions behind a
          centred convolution
Shapes:   h [B, T, E], E = expansion · D rounded to heads; W_r, W_i block-diagonal, one block for each head; state: the
          convolution's last taps - 1 inputs and h, taps · E numbers
Cost:     6 D E + 4 E² / num_heads FLOPs a token
Raises:   ValueError if num_heads or taps is less than one, or expansion not positive
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..initialization import fill_with
from ..kernels.convolution import short_convolution
from ..kernels.scan import scan
from ..mixer import Context, Mixer, Placement, split_heads
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "griffin": {"expansion": 4 / 3, "initialization": "paper"},
    "recurrent_gemma": {"expansion": 1.0, "biases": True, "full_start": True, "initialization": "paper"},
}

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
        biases: bool = False
        """Of every map, the convolution and both gates."""
        full_start: bool = False
        """Take a segment's first token whole, without √(1 − a²), as the published code does."""
        initialization: Literal["house", "paper"] = "house"
        """Of Λ; "paper": decays at r = 1 uniform between 0.9 and 0.999."""

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
        self.gate = nn.Linear(width, expanded, bias=config.biases)
        self.input = nn.Linear(width, expanded, bias=config.biases)
        self.output = nn.Linear(expanded, width, bias=config.biases)
        self.convolution = nn.Parameter(torch.empty(expanded, config.taps))
        self.recurrence_gate = nn.Parameter(torch.empty(heads, head_width, head_width))
        self.input_gate = nn.Parameter(torch.empty(heads, head_width, head_width))
        self.rate = nn.Parameter(torch.empty(expanded))  # Λ
        self.convolution_bias, self.recurrence_bias, self.input_bias = (
            nn.Parameter(torch.empty(expanded)) if config.biases else None for _ in range(3)
        )

    def mix(
        self, x: Tensor, rows: Rows, state: RGLRUState | None, context: Context | None
    ) -> tuple[Tensor, RGLRUState]:
        """The recurrence runs in float32 or wider."""
        inputs, hidden = state or (None, None)
        causal = self.placement.causal
        u, inputs = short_convolution(self.input(x), self.convolution, rows=rows, state=inputs, causal=causal)
        if self.convolution_bias is not None:
            u = u + self.convolution_bias
        compute = torch.promote_types(u.dtype, torch.float32)
        recurrence = self._gate(u, self.recurrence_gate, self.recurrence_bias, compute)
        log_decay = -STRENGTH * functional.softplus(self.rate.to(compute)) * recurrence
        room = -torch.expm1(2 * log_decay)  # 1 − a²; clamped only where its root would have no slope
        scale = room.clamp(min=torch.finfo(compute).tiny).sqrt()
        if self.config.full_start:
            scale = torch.where((rows.positions == 0)[..., None], 1, scale)
        taken = scale * self._gate(u, self.input_gate, self.input_bias, compute) * u
        h, hidden = scan(taken, log_decay, rows=rows, state=hidden, causal=causal)
        return self.output(functional.gelu(self.gate(x)) * h.to(u.dtype)), RGLRUState(inputs, hidden)

    def _gate(self, u: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        logits = torch.einsum("bthi,hij->bthj", split_heads(u, self.config.num_heads), weight).flatten(2)
        return (logits if bias is None else logits + bias).to(dtype).sigmoid()

    def reset_parameters(self) -> None:
        """Maps and taps by their fan-in; Λ so that memories last from ten to a thousand tokens; biases zero."""
        nn.init.normal_(self.convolution, std=self.config.taps**-0.5)
        for weight in (self.recurrence_gate, self.input_gate):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        for bias in (self.convolution_bias, self.recurrence_bias, self.input_bias):
            if bias is not None:
                nn.init.zeros_(bias)
        slow, fast = DECAYS
        if self.config.initialization == "paper":
            fill_with(self.rate, lambda u: torch.expm1((fast + u * (slow - fast)).log() / -STRENGTH).log())
        else:
            lowest, highest = (math.log(math.expm1(-math.log(decay) / STRENGTH)) for decay in DECAYS)
            nn.init.uniform_(self.rate, lowest, highest)
