"""LRU: a linear recurrence of complex states whose decays and phases do not depend on the data.

    h[t] = λ ⊙ h[t−1] + s ⊙ B x[t]      λ = exp(−exp(ν) + i exp(θ))      y[t] = Re(C h[t]) + D ⊙ x[t]

Paper:    Orvieto et al. 2023, arXiv:2303.06349, section 3 and appendix A (s is its γ, stored as a logarithm); nothing
          copied
Differs:  causal=False sums both directions, with the same decays; what surrounds the unit in the paper is the block's
Shapes:   h, λ, s [B, T, N] complex; B [N, D], C [D, N] complex, D here [D]; state: h, 2 N numbers
Cost:     8 D N + 2 N FLOPs a token
Raises:   ValueError if states is less than one, or not 0 ≤ shortest < longest < 1, or phase not positive
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..initialization import fill_with
from ..kernels.scan import scan
from ..mixer import Context, Mixer, Placement
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"initialization": "paper", "shortest": 0.0, "longest": 0.99},
    "long": {"initialization": "paper", "shortest": 0.99, "longest": 0.9999, "phase": math.pi / 10},
}


class LRU(Mixer):
    """Linear recurrent unit."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the unit; the ring is where λ lies at the beginning, uniform by area."""

        states: int | None = None
        """N; None is D."""
        shortest: float = 0.9
        """The inner radius of the ring: what the states that forget fastest keep of themselves at each token."""
        longest: float = 0.999
        """The outer radius of the ring."""
        phase: float = 2 * math.pi
        """The greatest angle of λ at the beginning."""
        initialization: Literal["house", "paper"] = "house"
        """Of the maps B and C; "paper": normal, 1/√(2 D) and 1/√N for real and imaginary parts."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width = placement.width
        states = width if config.states is None else config.states
        if states < 1:
            raise ValueError(f"lru: states is {states}; at least 1 is needed")
        if not 0 <= config.shortest < config.longest < 1 or config.phase <= 0:
            raise ValueError(
                f"lru: shortest {config.shortest}, longest {config.longest}, phase {config.phase}; "
                "0 <= shortest < longest < 1 and a positive phase are needed"
            )
        self.input = nn.Linear(width, 2 * states, bias=False)  # B
        self.log_rate = nn.Parameter(torch.empty(states))  # ν
        self.log_phase = nn.Parameter(torch.empty(states))  # θ
        self.log_scale = nn.Parameter(torch.empty(states))
        self.output = nn.Linear(2 * states, width, bias=False)  # C
        self.skip = nn.Parameter(torch.empty(width))  # D

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """The recurrence runs in float32 or wider."""
        compute = torch.promote_types(x.dtype, torch.float32)
        rate, phase, scale = (t.to(compute).exp() for t in (self.log_rate, self.log_phase, self.log_scale))
        inputs = torch.view_as_complex(self.input(x).to(compute).unflatten(-1, (-1, 2))) * scale  # B T N
        log_decay = torch.complex(-rate, phase).expand_as(inputs)
        h, state = scan(inputs, log_decay, rows=rows, state=state, causal=self.placement.causal)
        return self.output(torch.view_as_real(h).flatten(-2).to(x.dtype)) + self.skip * x, state

    def reset_parameters(self) -> None:
        """λ uniform on a ring, s so that every state has the variance of its inputs, D normal."""
        inner, outer, phase = self.config.shortest, self.config.longest, self.config.phase
        fill_with(self.log_rate, lambda u: (-0.5 * (outer**2 - u * (outer**2 - inner**2)).log()).log())
        fill_with(self.log_phase, lambda u: ((1 - u) * phase).log())
        fill_with(self.log_scale, lambda u: 0.5 * (-torch.expm1(-2 * self.log_rate.exp())).log())
        nn.init.normal_(self.skip)
        if self.config.initialization == "paper":
            nn.init.normal_(self.input.weight, std=(2 * self.input.in_features) ** -0.5)
            nn.init.normal_(self.output.weight, std=(self.output.in_features / 2) ** -0.5)
