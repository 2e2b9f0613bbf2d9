"""TNN's gated Toeplitz unit: a gate times a convolution as long as the sequence, taps from a small network.

    u, v = silu(W_u x), silu(W_v x)      w[k] = decay^|k| · network(k)      y = W_o (u ⊙ norm(Σ_s w[t−s] ⊙ v[s]))

Paper:    Qin et al. 2023, arXiv:2305.04749
Differs:  encoder "house" has the network read sines and cosines of the lag k through silu, without norms or biases;
          "paper" the lag itself, through ReLU behind norms without weights, with biases. The norm behind the
          convolution is the house's, output_norm=False leaves it out as the paper does. No other biases. Right for
          every length and both directions. initialization "paper" is torch's, which the published code keeps
Shapes:   u, v [B, T, E], E = expansion · D; w [T, E] (causal) or [2 T − 1, E]; state: v of all past tokens
Cost:     6 D E + 10 E log2(2 T) FLOPs a token; for each lag, whatever the batch, about 2 layers P² + 2 E P with
          P = position_width. State E numbers for each past token; a step of decoding reads all of it and makes the
          taps of all lags again, so it takes longer with each token
Raises:   ValueError if expansion is not positive, decay not in (0, 1], layers less than 1, or position_width not
          positive, or odd with encoder "house"
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.convolution import convolution
from ..lags import lags_for, precisely
from ..mixer import Context, Mixer, Placement
from ..norm import RMSNorm
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "expansion": 3.0,
        "encoder": "paper",
        "position_width": 64,
        "layers": 6,
        "output_norm": False,
        "initialization": "paper",
    },
    "wide": {"expansion": 3.0},
}


class TNN(Mixer):
    """Gated Toeplitz unit."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the unit."""

        expansion: float = 4 / 3
        """E / D."""
        decay: float = 0.99
        """What the taps lose with each token of distance."""
        encoder: Literal["house", "paper"] = "house"
        """The network that makes the taps."""
        position_width: int = 32
        """Its width."""
        layers: int = 1
        """Its layers between the first and the last."""
        output_norm: bool = True
        initialization: Literal["house", "paper"] = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        if config.expansion <= 0:
            raise ValueError(f"tnn: expansion is {config.expansion}; a positive number is needed")
        if not 0 < config.decay <= 1:
            raise ValueError(f"tnn: decay is {config.decay}; a number in (0, 1] is needed")
        if config.layers < 1:
            raise ValueError(f"tnn: layers is {config.layers}; at least 1 is needed")
        self.published = config.encoder == "paper"
        if config.position_width < 1 or (config.position_width % 2 and not self.published):
            raise ValueError(f"tnn: position_width is {config.position_width}; an even number is needed")
        width, inner = placement.width, config.position_width
        expanded = max(1, round(config.expansion * width))
        self.gate = nn.Linear(width, expanded, bias=False)
        self.value = nn.Linear(width, expanded, bias=False)
        self.lag_input = nn.Linear(1 if self.published else inner, inner, bias=self.published)
        self.lag_hidden = nn.ModuleList(nn.Linear(inner, inner, bias=self.published) for _ in range(config.layers))
        self.lag_output = nn.Linear(inner, expanded, bias=self.published)
        self.norm = RMSNorm(expanded) if config.output_norm else None
        self.output = nn.Linear(expanded, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """Gate the convolution, normalised or not."""
        v = functional.silu(self.value(x))
        mixed, state = convolution(v, self.taps, rows=rows, state=state, causal=self.placement.causal)
        if self.norm is not None:
            mixed = self.norm(mixed)
        return self.output(functional.silu(self.gate(x)) * mixed), state

    def taps(self, length: int) -> Tensor:
        """Weights [n, E] of lags 0 to n - 1, or [2n - 1, E] of lags -(n - 1) to n - 1 for both directions."""
        lags = lags_for(length, self.placement.causal, self.lag_input.weight)
        hidden = precisely(self._read(lags), self.lag_input.weight, self.lag_input.bias)
        for layer in (*self.lag_hidden, self.lag_output):
            if self.published:
                hidden = functional.rms_norm(hidden, hidden.shape[-1:]).relu()
            else:
                hidden = functional.silu(hidden)
            hidden = precisely(hidden, layer.weight, layer.bias)
        return hidden * (lags.abs() * math.log(self.config.decay)).exp()[:, None]

    def _read(self, lags: Tensor) -> Tensor:
        """What the network reads: the lag, or sines and cosines of it [n, position_width]."""
        if self.published:
            return lags[:, None]
        width = self.config.position_width
        exponents = torch.arange(0, width, 2, device=lags.device, dtype=lags.dtype) / width
        angles = lags[:, None] * 10_000**-exponents
        return torch.cat([angles.sin(), angles.cos()], 1)

    def reset_parameters(self) -> None:
        """By the model's rule, or "paper": uniform within the square root of the fan-in, as the encoder's biases."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                bound = part.in_features**-0.5
                if self.config.initialization == "paper":
                    nn.init.uniform_(part.weight, -bound, bound)
                if part.bias is not None:
                    # Were they zero, the first norm would leave nothing of the lag but its sign.
                    nn.init.uniform_(part.bias, -bound, bound)
