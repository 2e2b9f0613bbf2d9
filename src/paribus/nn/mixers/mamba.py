"""Mamba: a selective state space with N states for each channel, behind a short convolution.

    u = silu(short_convolution(W_x x) + b)      d, B, C = W_s u      Δ = softplus(W_Δ d + c)
    h[t, n] = exp(Δ[t] A[n]) h[t-1, n] + Δ[t] B[t, n] u[t]      v[t] = Σ_n C[t, n] h[t, n] + D u[t]
    y = W_o (silu(W_z x) ⊙ v)

Paper:    Gu and Dao 2023, arXiv:2312.00752, algorithm 2 and section 3.4; nothing copied
Differs:  initial steps are uniform in the inverse of softplus, the paper's in their logarithm, which is the same within
          5 %; causal=False sums both directions, with the same gates, behind a centred convolution
Shapes:   u, Δ [B, T, E], E = expansion · D; B, C [B, T, N]; A [N, E]; d [B, T, step_rank]; state: the convolution's
          last taps - 1 inputs and h, (taps - 1 + N) E numbers
Cost:     6 D E + 2 E (2 step_rank + 2 N) + 4 E N FLOPs a token
Raises:   ValueError if expansion is not positive, or states, taps or step_rank less than one
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
from ..kernels.state_space import state_space_scan
from ..mixer import Context, Mixer, Placement
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {"paper": {"initialization": "paper"}}

STEPS = (0.001, 0.1)  # the shortest and the longest at the beginning, for a token with W_Δ d = 0


class MambaState(NamedTuple):
    """What the block carries from token to token."""

    inputs: Tensor | None
    """[B, taps - 1, E]: the short convolution's."""
    hidden: Tensor | None
    """[B, N, E]: h."""


class Mamba(Mixer):
    """Selective state space in its gated block."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the block."""

        expansion: float = 2.0
        """E / D."""
        states: int = 16
        """N."""
        taps: int = 4
        """Tokens that the short convolution sees, the present one included."""
        step_rank: int | None = None
        """Width of d, from which steps are made; None is D / 16, rounded up."""
        initialization: Literal["house", "paper"] = "house"
        """Of the maps and taps; "paper": uniform, ±1/√(inputs), the output's divided by √(layers) besides."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        if config.expansion <= 0:
            raise ValueError(f"mamba: expansion is {config.expansion}; a positive number is needed")
        width = placement.width
        self.step_rank = math.ceil(width / 16) if config.step_rank is None else config.step_rank
        for name, number in (("states", config.states), ("taps", config.taps), ("step_rank", self.step_rank)):
            if number < 1:
                raise ValueError(f"mamba: {name} is {number}; at least 1 is needed")
        expanded = max(1, round(config.expansion * width))
        self.input = nn.Linear(width, expanded, bias=False)
        self.gate = nn.Linear(width, expanded, bias=False)
        self.convolution = nn.Parameter(torch.empty(expanded, config.taps))
        self.convolution_bias = nn.Parameter(torch.empty(expanded))  # b
        self.select = nn.Linear(expanded, self.step_rank + 2 * config.states, bias=False)
        self.step = nn.Linear(self.step_rank, expanded, bias=False)
        self.step_bias = nn.Parameter(torch.empty(expanded))  # c
        self.log_rate = nn.Parameter(torch.empty(config.states, expanded))  # A = -exp(log_rate)
        self.skip = nn.Parameter(torch.empty(expanded))  # D
        self.output = nn.Linear(expanded, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: MambaState | None, context: Context | None
    ) -> tuple[Tensor, MambaState]:
        """The recurrence runs in float32 or wider."""
        inputs, hidden = state or (None, None)
        causal = self.placement.causal
        u, inputs = short_convolution(self.input(x), self.convolution, rows=rows, state=inputs, causal=causal)
        u = functional.silu(u + self.convolution_bias)
        N = self.config.states
        low, write, read = self.select(u).split([self.step_rank, N, N], -1)
        compute = torch.promote_types(x.dtype, torch.float32)
        step = functional.softplus((self.step(low) + self.step_bias).to(compute))
        rate = -self.log_rate.to(compute).exp()
        v, hidden = state_space_scan(step * u, step, rate, write, read, rows=rows, state=hidden, causal=causal)
        v = (v + self.skip * u).to(x.dtype)
        return self.output(functional.silu(self.gate(x)) * v), MambaState(inputs, hidden)

    def reset_parameters(self) -> None:
        """A from -1 to -N, D one, steps from 0.001 to 0.1; maps by the model's rule, or as published."""
        fill_with(self.log_rate, lambda u: torch.arange(1, len(u) + 1, device=u.device).log()[:, None].expand_as(u))
        nn.init.ones_(self.skip)
        shortest, longest = (math.log(math.expm1(step)) for step in STEPS)
        nn.init.uniform_(self.step_bias, shortest, longest)
        taps = self.config.taps**-0.5
        if self.config.initialization == "house":
            nn.init.normal_(self.convolution, std=taps)
            nn.init.zeros_(self.convolution_bias)
            return
        for parameter in (self.convolution, self.convolution_bias):
            nn.init.uniform_(parameter, -taps, taps)
        for linear in (self.input, self.gate, self.select, self.step, self.output):
            bound = linear.in_features**-0.5
            if linear is self.output:
                bound /= self.placement.num_layers**0.5
            nn.init.uniform_(linear.weight, -bound, bound)
