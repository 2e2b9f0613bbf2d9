"""Convolutional perceptron: two convolutions over a few tokens, the channels wider between them.

    y = C_o act(norm(C_i x))        (C h)[t] = Σ_j W[j] h[t - j]        depthwise: (C h)[t] = W Σ_j w[j] ⊙ h[t - j]

Paper:    none; the dense block of HomebrewNLP's Olmax
Differs:  the norms before the first and after the last convolution, and the reversible residual, are the block's;
          initial values are normal by fan-in. The default norm is rms_norm; Olmax's l2_norm makes vectors √E times
          shorter. "depthwise" is not in Olmax. causal=False centres the taps
Shapes:   x [B, T, D]; inner [B, T, E] with E = round(expansion · D); W [E, taps, D] and back, depthwise w [D, taps],
          W [E, D] and back; state: the last taps - 1 inputs of each convolution
Cost:     4 taps D E FLOPs a token, depthwise 4 D E + 2 taps (D + E); state (taps - 1) (D + E) numbers, whatever the
          length
Raises:   ValueError if taps is less than 1, or expansion leaves no inner channel, or there is no such norm
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..channel import ACTIVATIONS, Activation, inner_width
from ..kernels.convolution import short_convolution
from ..mixer import Context, Mixer, Placement
from ..norm import make_norm
from ..projection import Projection
from ..segments import Rows
from ..window_linear import WindowLinear

PRESETS: dict[str, dict[str, Any]] = {
    "olmax": {"taps": 5, "expansion": 2.0, "norm": "l2_norm", "activation": "leaky_relu"},
    "depthwise": {"depthwise": True, "expansion": 4.0, "activation": "gelu", "norm": "none"},
}

States = tuple[Tensor | None, Tensor | None]


class Convolution(Mixer):
    """Convolution, nonlinearity, convolution."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the convolutional perceptron."""

        expansion: float = 2.0
        taps: int = 5
        """Tokens that each convolution sees, the present one included."""
        norm: str = "rms_norm"
        """Between the two; or "none"."""
        activation: Activation = "leaky_relu"
        depthwise: bool = False
        """Convolve each channel alone, and mix the channels of each token alone."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        if config.taps < 1:
            raise ValueError(f"convolution: taps is {config.taps}; at least 1 is needed")
        width, inner = placement.width, inner_width(placement.width, config.expansion)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = make_norm(config.norm, inner)
        self.filters = self.inner_filters = None
        if config.depthwise:
            self.filters = nn.Parameter(torch.empty(width, config.taps))
            self.inner_filters = nn.Parameter(torch.empty(inner, config.taps))
        self.up = self._map(width, inner)
        self.output = self._map(inner, width)

    def _map(self, inputs: int, outputs: int) -> nn.Linear:
        if self.config.depthwise:
            return Projection(inputs, outputs)
        return WindowLinear(inputs, outputs, self.config.taps, self.placement.causal)

    def mix(self, x: Tensor, rows: Rows, state: States | None, context: Context | None) -> tuple[Tensor, States]:
        """One convolution after the other."""
        seen, inner_seen = state or (None, None)
        h, seen = self._convolve(self.up, self.filters, x, rows, seen)
        h = self.activation(self.norm(h))
        y, inner_seen = self._convolve(self.output, self.inner_filters, h, rows, inner_seen)
        return y, (seen, inner_seen)

    def _convolve(
        self, channels: nn.Linear, filters: Tensor | None, x: Tensor, rows: Rows, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if filters is None:
            y, state = channels(x, rows, state)
            return y, state
        x, state = short_convolution(x, filters, rows=rows, state=state, causal=self.placement.causal)
        return channels(x), state

    def reset_parameters(self) -> None:
        """Filters of single channels by their number of taps, so that they keep the size of their input."""
        for filters in (self.filters, self.inner_filters):
            if filters is not None:
                nn.init.normal_(filters, std=self.config.taps**-0.5)
