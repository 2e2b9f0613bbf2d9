"""Gated linear unit: one inner projection gates the other.

    y = W_o (act(W_g x) ⊙ W_u x)

Paper:    Shazeer 2020, arXiv:2002.05202
Differs:  nothing; no biases, as in the paper
Shapes:   x [B, T, D]; inner [B, T, E] with E = round(expansion · D)
Cost:     6 D E FLOPs a token; 3 D E parameters
Raises:   ValueError if expansion leaves no inner channel
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..channel import ACTIVATIONS, Activation, Channel, inner_width
from ..mixer import Placement
from ..projection import Projection

PRESETS: dict[str, dict[str, Any]] = {
    "swiglu": {"activation": "silu"},
    "geglu": {"activation": "gelu"},
    "reglu": {"activation": "relu"},
    "glu": {"activation": "sigmoid"},
    "bilinear": {"activation": "identity"},
}


class GatedLinearUnit(Channel):
    """W_o (act(W_g x) ⊙ W_u x)."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the gated linear unit."""

        expansion: float = 8 / 3
        activation: Activation = "silu"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        inner = inner_width(placement.width, config.expansion)
        self.activation = ACTIVATIONS[config.activation]
        self.gate = Projection(placement.width, inner)
        self.up = Projection(placement.width, inner)
        self.output = Projection(inner, placement.width)

    def transform(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.output(self.activation(self.gate(x)) * self.up(x))
