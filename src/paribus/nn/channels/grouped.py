"""Grouped perceptron: every group of channels is a perceptron of its own, blind to the others.

    y_g = W_o,g act(W_i,g x_g)        gated: y_g = W_o,g (act(W_g,g x_g) ⊙ W_i,g x_g)        g = 1 … G

Paper:    none; the feed-forward of heads in HomebrewNLP's MTF, where groups are the heads of attention
Differs:  no norm and no biases inside; GELU in place of its nonlinearities. Groups never meet here; where they do is
          the token mixer, or a dense channel mixer in other blocks
Shapes:   x_g [B, T, D / G]; inner [B, T, E / G] with E / G = round(expansion · D / G)
Cost:     4 D E / G FLOPs a token, gated 6 D E / G; half as many parameters
Raises:   ValueError if num_groups does not divide the width, or expansion leaves no inner channel
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..channel import ACTIVATIONS, Activation, Channel, inner_width
from ..mixer import Placement
from ..stacked import GroupedLinear

PRESETS: dict[str, dict[str, Any]] = {"swiglu": {"gated": True, "activation": "silu", "expansion": 8 / 3}}


class Grouped(Channel):
    """Block-diagonal projections."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the grouped perceptron."""

        expansion: float = 4.0
        num_groups: int = 4
        activation: Activation = "gelu"
        gated: bool = False

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, groups = placement.width, config.num_groups
        if groups < 1 or width % groups:
            raise ValueError(f"grouped: width {width} is not divisible by num_groups {groups}")
        inner = inner_width(width // groups, config.expansion)
        self.activation = ACTIVATIONS[config.activation]
        self.gate = GroupedLinear(groups, width // groups, inner) if config.gated else None
        self.up = GroupedLinear(groups, width // groups, inner)
        self.output = GroupedLinear(groups, inner, width // groups)

    def transform(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        up = self.up(x)
        return self.output(self.activation(up) if self.gate is None else self.activation(self.gate(x)) * up)
