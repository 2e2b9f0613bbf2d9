"""Two-layer perceptron on each token.

    y = W_o act(W_i x)

Paper:    Vaswani et al. 2017, arXiv:1706.03762, section 3.3
Differs:  GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415) in place of ReLU by default; no biases
Shapes:   x [B, T, D]; inner [B, T, E] with E = round(expansion · D)
Cost:     4 D E FLOPs a token; 2 D E parameters
Raises:   ValueError if expansion leaves no inner channel
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional

from ..channel import Channel, inner_width
from ..mixer import Placement
from ..projection import Projection

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}


class MultiLayerPerceptron(Channel):
    """W_o act(W_i x)."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the perceptron."""

        expansion: float = 4.0
        activation: Literal["gelu", "relu", "silu"] = "gelu"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        inner = inner_width(placement.width, config.expansion)
        self.activation = _ACTIVATIONS[config.activation]
        self.up = Projection(placement.width, inner)
        self.output = Projection(inner, placement.width)

    def transform(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.output(self.activation(self.up(x)))
