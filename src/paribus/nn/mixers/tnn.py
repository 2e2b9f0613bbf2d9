"""TNN's gated Toeplitz unit: a gate times a convolution as long as the sequence, taps from a small MLP.

    u, v = silu(W_u x), silu(W_v x)      w[k] = decay^|k| · MLP(k)      y = W_o (u ⊙ norm(Σ_s w[t−s] ⊙ v[s]))

Paper:    Qin et al. 2023, arXiv:2305.04749
Differs:  the MLP reads sines and cosines of the lag k, the paper's the lag itself, and has no norms; RMSNorm
          behind the convolution, no biases; right for every length and both directions
Shapes:   u, v [B, T, E], E = expansion · D; w [T, E] (causal) or [2 T − 1, E]; state: v of all past tokens
Cost:     6 D E + 10 E log2(2 T) FLOPs a token, and 2 E position_width for each lag, whatever the batch; state
          E numbers for each past token, all read at each step of decoding
Raises:   ValueError if expansion is not positive, decay not in (0, 1], position_width not even and positive
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.convolution import convolution
from ..mixer import Context, Mixer, Placement
from ..norm import RMSNorm
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {"paper": {"expansion": 3.0}}


class TNN(Mixer):
    """Gated Toeplitz unit."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the unit."""

        expansion: float = 4 / 3
        """E / D."""
        decay: float = 0.99
        """What the taps lose with each token of distance."""
        position_width: int = 32
        """Width of the MLP that makes the taps."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        if config.expansion <= 0:
            raise ValueError(f"tnn: expansion is {config.expansion}; a positive number is needed")
        if not 0 < config.decay <= 1:
            raise ValueError(f"tnn: decay is {config.decay}; a number in (0, 1] is needed")
        if config.position_width < 2 or config.position_width % 2:
            raise ValueError(f"tnn: position_width is {config.position_width}; an even number is needed")
        width, inner = placement.width, config.position_width
        expanded = max(1, round(config.expansion * width))
        self.gate = nn.Linear(width, expanded, bias=False)
        self.value = nn.Linear(width, expanded, bias=False)
        self.lag_input = nn.Linear(inner, inner, bias=False)
        self.lag_hidden = nn.Linear(inner, inner, bias=False)
        self.lag_output = nn.Linear(inner, expanded, bias=False)
        self.norm = RMSNorm(expanded)
        self.output = nn.Linear(expanded, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """Gate the normalised convolution."""
        v = functional.silu(self.value(x))
        mixed, state = convolution(v, self.taps, rows=rows, state=state, causal=self.placement.causal)
        return self.output(functional.silu(self.gate(x)) * self.norm(mixed)), state

    def taps(self, length: int) -> Tensor:
        """Weights [n, E] of lags 0 to n - 1, or [2n - 1, E] of lags -(n - 1) to n - 1 for both directions."""
        weight = self.lag_input.weight
        compute = torch.promote_types(weight.dtype, torch.float32)
        first = 0 if self.placement.causal else 1 - length
        lags = torch.arange(first, length, device=weight.device, dtype=compute)
        exponents = torch.arange(0, weight.shape[1], 2, device=weight.device, dtype=compute) / weight.shape[1]
        angles = lags[:, None] * 10_000**-exponents
        hidden = torch.cat([angles.sin(), angles.cos()], 1).to(weight.dtype)
        for layer in (self.lag_input, self.lag_hidden):
            hidden = functional.silu(layer(hidden))
        envelope = (lags.abs() * math.log(self.config.decay)).exp()[:, None]
        return self.lag_output(hidden).to(compute) * envelope
