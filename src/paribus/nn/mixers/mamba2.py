"""Mamba-2: a state-space model with one decay a head, whose queries and keys many heads share.

    z, u, dt = W x                               v, k, q = silu(short_convolution(u) + c)
    Δ[t] = softplus(dt[t] + b)                   a[t] = exp(-exp(A) Δ[t])
    S[t] = a[t] S[t-1] + Δ[t] k[t] v[t]ᵀ         o[t] = S[t]ᵀ q[t] + D v[t]
    y = W_o norm(silu(z) ⊙ o)

In the paper's letters v is X, k is B, q is C, and N is the width of keys.

Paper:    Dao and Gu 2024, arXiv:2405.21060; transformers' code was read and is compared with, nothing was copied
Differs:  causal=False adds the same recurrence from the end, without counting the token itself twice, behind a centred
          convolution. Initial values: both have Δ log-uniform from 0.001 to 0.1 and D one; "house" has exp(A)
          log-uniform from 1 to 16, linear maps and taps normal by their fan-in and c zero; "paper" has exp(A) uniform
          from 1 to 16, and maps, taps and c uniform within 1 / √fan_in, which are torch's defaults
Shapes:   z, v [B, T, H, P], H P = E = expansion D; k, q [B, T, G, N]; norm over the E / G channels of a group; state:
          the convolution's last taps - 1 inputs [B, taps - 1, E + 2 G N], and S [B, H, N, P] in float32
Cost:     6 D E + 4 D G N + 4 E N + 2 E C + 2 G N C FLOPs a token in chunks of C tokens; state E N numbers and the
          convolution's, whatever the length
Raises:   ValueError if num_heads does not divide E, num_groups does not divide num_heads, or a number is less than one
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..decay import widened
from ..initialization import fill_with
from ..kernels.convolution import short_convolution
from ..kernels.shared_keys import shared_recurrence
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..projection import Projection
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"num_heads": 8, "state_width": 128, "initialization": "paper"},
}

EPSILON = 1e-5  # of the norm
RATES, STEPS = (1.0, 16.0), (0.001, 0.1)


class Mamba2State(NamedTuple):
    """What the mixer carries from token to token."""

    inputs: Tensor | None
    """[B, taps - 1, E + 2 G N]: the short convolution's."""
    memory: Tensor | None
    """[B, H, N, P]: S."""


class Mamba2(Mixer):
    """Mamba's second form: a recurrence with scalar decay and shared keys."""

    @dataclass(frozen=True)
    class Config:
        """Settings of Mamba-2."""

        num_heads: int = 4
        expansion: float = 2.0
        """E / D."""
        state_width: int = 64
        """N."""
        num_groups: int = 1
        """G, of heads that share keys and queries."""
        taps: int = 4
        """Tokens that the short convolution sees, the present one included."""
        initialization: Literal["house", "paper"] = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads, groups = placement.width, config.num_heads, config.num_groups
        for name in ("num_heads", "state_width", "num_groups", "taps"):
            if getattr(config, name) < 1:
                raise ValueError(f"mamba2: {name} is {getattr(config, name)}; at least 1 is needed")
        expanded = int(width * config.expansion)
        if expanded < 1:
            raise ValueError(f"mamba2: expansion {config.expansion} leaves no channel")
        check_divisible(expanded, heads, "mamba2: expansion")
        if heads % groups:
            raise ValueError(f"mamba2: num_heads {heads} is not divisible by num_groups {groups}")
        self.widths = [expanded, groups * config.state_width, groups * config.state_width]  # of v, k, q
        self.input = Projection(width, expanded + sum(self.widths) + heads)  # z, v, k, q, dt
        self.convolution = nn.Parameter(torch.empty(sum(self.widths), config.taps))
        self.convolution_bias = nn.Parameter(torch.empty(sum(self.widths)))  # c
        self.step_bias = nn.Parameter(torch.empty(heads))  # b
        self.log_rate = nn.Parameter(torch.empty(heads))  # A
        self.skip = nn.Parameter(torch.empty(heads, 1))  # D
        self.norms = nn.ModuleList(RMSNorm(expanded // groups, EPSILON) for _ in range(groups))
        self.output = nn.Linear(expanded, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: Mamba2State | None, context: Context | None
    ) -> tuple[Tensor, Mamba2State]:
        """The recurrence, gated and then normalised in each group."""
        inputs, memory = state or (None, None)
        causal, heads, groups = self.placement.causal, self.config.num_heads, self.config.num_groups
        z, u, steps = self.input(x).split([self.widths[0], sum(self.widths), heads], -1)
        u, inputs = short_convolution(u, self.convolution, rows=rows, state=inputs, causal=causal)
        v, k, q = functional.silu(u + self.convolution_bias).split(self.widths, -1)
        v, k, q = split_heads(v, heads), split_heads(k, groups), split_heads(q, groups)
        steps = functional.softplus(widened(steps) + self.step_bias)  # B T H
        log_decay = -widened(self.log_rate).exp() * steps
        scaled = steps[..., None] * v
        o, memory = shared_recurrence(widened(q), k, scaled, log_decay, rows=rows, state=memory, causal=causal)
        gated = torch.addcmul(o, self.skip, v).to(v.dtype).flatten(2) * functional.silu(z)
        parts = [gated] if groups == 1 else gated.chunk(groups, -1)
        normed = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        y = normed[0] if groups == 1 else torch.cat(normed, -1)
        return self.output(y), Mamba2State(inputs, memory)

    def reset_parameters(self) -> None:
        """Rates and step sizes spread over their ranges; nothing added in the convolution, everything skipped."""
        paper = self.config.initialization == "paper"
        nn.init.ones_(self.skip)
        fill_with(self.step_bias, lambda u: (STEPS[0] * (STEPS[1] / STEPS[0]) ** u).expm1().log())
        if not paper:
            nn.init.normal_(self.convolution, std=self.config.taps**-0.5)
            nn.init.zeros_(self.convolution_bias)
            nn.init.uniform_(self.log_rate, math.log(RATES[0]), math.log(RATES[1]))
            return
        fill_with(self.log_rate, lambda u: (RATES[0] + (RATES[1] - RATES[0]) * u).log())
        for weight in (self.convolution, self.convolution_bias, self.input.weight, self.output.weight):
            bound = (weight.shape[1] if weight.dim() == 2 else self.config.taps) ** -0.5
            nn.init.uniform_(weight, -bound, bound)
