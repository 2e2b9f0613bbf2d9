"""Kimi delta attention: the delta rule whose state forgets each key channel at its own rate.

    q, k = silu(conv(W x)) / ‖·‖        v = silu(conv(W_v x))        β = sigmoid(W_β x)
    log a = -exp(A) softplus(W₂ W₁ x + b)        a [T, H, K], A [H]
    S[t] = (I - β[t] k[t] k[t]ᵀ) Diag(a[t]) S[t-1] + β[t] k[t] v[t]ᵀ        o[t] = S[t]ᵀ q[t] / √K
    y = W_o (sigmoid(W₄ W₃ x) ⊙ norm(o))

Paper:    Kimi Team 2025, arXiv:2510.26692; transformers' code of Kimi Linear was read, not copied, and serves as a test
Differs:  rates exp(A) and steps softplus(b) start log-uniform in 1 to 16 and 0.001 to 0.1; causal=False adds the same
          recurrence from the end, without counting the token itself twice, behind a centred convolution;
          initialization "paper" takes the published code's maps and taps
Shapes:   q, k, v, a [B, T, H, K], K = D / H; state: the convolutions' last taps - 1 inputs and S [B, H, K, K] in
          float32
Cost:     8 D² + 8 D R + 6 D K + 10 D C + H C² FLOPs a token in chunks of C tokens, R the rank; state D (K + 3 taps - 3)
          numbers
Raises:   ValueError if num_heads does not divide the width, or taps or rank is less than one
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..decay import widened
from ..delta_parts import Initialization, ShortConvolution, check_taps, initialize_as_published, with_length
from ..kernels.delta import delta
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"initialization": "paper"},
    "negative_eigenvalues": {"negative_eigenvalues": True},
}


class KimiDeltaState(NamedTuple):
    """What the mixer carries from token to token."""

    inputs: tuple[Tensor | None, ...]
    """[B, taps - 1, D] each: the short convolutions' of queries, keys and values."""
    memory: Tensor | None
    """[B, H, K, K]: S."""


class KimiDeltaAttention(Mixer):
    """The delta rule with a decay for each channel through few dimensions."""

    @dataclass(frozen=True)
    class Config:
        """Settings of Kimi delta attention."""

        num_heads: int = 4
        rank: int | None = None
        """Dimensions that decays and output gate go through; None: as many as a head has."""
        taps: int = 4
        """Tokens that the short convolutions see, the present one included."""
        negative_eigenvalues: bool = False
        """β = 2 sigmoid(W_β x): beyond 1 the state is reflected along the key."""
        initialization: Initialization = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads, taps = placement.width, config.num_heads, config.taps
        self.head_width = check_divisible(width, heads, "kda")
        rank = self.head_width if config.rank is None else config.rank
        if rank < 1:
            raise ValueError(f"kda: rank is {rank}; at least 1 is needed")
        check_taps(taps, "kda")
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.convolutions = nn.ModuleList(ShortConvolution(width, taps, placement.causal) for _ in range(3))
        self.strength = nn.Linear(width, heads, bias=False)
        self.decay_down = nn.Linear(width, rank, bias=False)
        self.decay_up = nn.Linear(rank, width, bias=False)
        self.decay_bias = nn.Parameter(torch.empty(width))
        self.log_rate = nn.Parameter(torch.empty(heads))  # A
        self.gate_down = nn.Linear(width, rank, bias=False)
        self.gate_up = nn.Linear(rank, width, bias=False)
        self.norm = RMSNorm(self.head_width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: KimiDeltaState | None, context: Context | None
    ) -> tuple[Tensor, KimiDeltaState]:
        """The delta rule, normalised in each head and gated."""
        inputs, memory = state or ((None, None, None), None)
        parts = zip(self.convolutions, (self.query, self.key, self.value), inputs, strict=True)
        convolved, inputs = zip(*(mix(project(x), rows, past) for mix, project, past in parts), strict=True)
        q, k, v = (split_heads(part, self.config.num_heads) for part in convolved)
        q, k = with_length(q, self.head_width**-0.5), with_length(k)
        strength = self.strength(x).sigmoid() * (2 if self.config.negative_eigenvalues else 1)
        o, memory = delta(q, k, v, strength, self.log_decay(x), rows=rows, state=memory, causal=self.placement.causal)
        gate = self.gate_up(self.gate_down(x)).sigmoid()
        return self.output(gate * self.norm(o).flatten(2)), KimiDeltaState(inputs, memory)

    def log_decay(self, x: Tensor) -> Tensor:
        """log a [B, T, H, K] of tokens x [B, T, D], in float32 or wider."""
        step = functional.softplus(widened(self.decay_up(self.decay_down(x)) + self.decay_bias))
        return split_heads(step, self.config.num_heads) * -widened(self.log_rate).exp()[:, None]

    def reset_parameters(self) -> None:
        """Rates and step sizes spread over their ranges."""
        nn.init.uniform_(self.log_rate, 0, math.log(16))
        nn.init.uniform_(self.decay_bias, math.log(math.expm1(0.001)), math.log(math.expm1(0.1)))
        if self.config.initialization == "paper":
            initialize_as_published(self)
