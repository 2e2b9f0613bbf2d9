"""Two-layer perceptron on each token.

    y = W_o act(W_i x)

Paper:    Vaswani et al. 2017, arXiv:1706.03762, section 3.3; "squared_relu": So et al. 2021, Primer, arXiv:2109.08668
Differs:  GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415) in place of ReLU by default; no biases
Shapes:   x [B, T, D]; inner [B, T, E] with E = round(expansion · D)
Cost:     4 D E FLOPs a token; 2 D E parameters
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
    "relu": {"activation": "relu"},
    "gelu": {"activation": "gelu"},
    "squared_relu": {"activation": "squared_relu"},
}


class MultiLayerPerceptron(Channel):
    """W_o act(W_i x)."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the perceptron."""

        expansion: float = 4.0
        activation: Activation = "gelu"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        inner = inner_width(placement.width, config.expansion)
        self.activation = ACTIVATIONS[config.activation]
        self.up = Projection(placement.width, inner)
        self.output = Projection(inner, placement.width)

    def transform(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.output(self.activation(self.up(x)))
