"""Series-informed activation: a perceptron, or a gated unit, whose nonlinearity is a sum of n shifted copies of one.

    y = W_o σ_s(W_i x)        gated: y = W_o (σ_s(W_g x) ⊙ W_i x)
    inside: σ_s(h) = Σ_i σ(a_i ⊙ h + b_i)        outside: σ_s(h) = Σ_i a_i ⊙ σ(h + b_i)        i = 1 … n

Paper:    Wang et al. 2023, PanGu-π, arXiv:2312.17276, section 3.3; "outside": Chen et al. 2023, VanillaNet,
          arXiv:2305.12972; no code of PanGu-π was published
Differs:  a_i and b_i are vectors, one number for each inner channel. The paper's equation 9 reads as n projections,
          but the 2.6 % of latency that it reports for n = 2 is that of affine maps, so these are taken. VanillaNet's
          sum over neighbours is not: in text it would read what comes later. The paper says nothing of gates; here the
          series is on the gate. Initial values are this library's: the first term is σ, the others small, so that
          training begins with the plain activation. No biases in the projections
Shapes:   x [B, T, D]; inner [B, T, E] with E = round(expansion · D); a, b: n vectors [E] each
Cost:     4 D E FLOPs a token, gated 6 D E; 2 D E + 2 n E parameters, gated 3 D E + 2 n E
Raises:   ValueError if expansion leaves no inner channel, or num_terms is less than 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..channel import ACTIVATIONS, Activation, Channel, inner_width
from ..mixer import Placement
from ..projection import Projection

PRESETS: dict[str, dict[str, Any]] = {
    "pangu_pi": {"gated": True, "activation": "silu", "expansion": 8 / 3},
    "outside": {"affine": "outside"},
}

SMALL = 0.02
"""Standard deviation of the initial numbers of every term but the first."""


class SeriesInformed(Channel):
    """W_o σ_s(W_i x), or with a gate."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the series-informed activation."""

        expansion: float = 4.0
        activation: Activation = "gelu"
        """σ."""
        num_terms: int = 2
        """n; 1 leaves σ with one affine map."""
        affine: Literal["inside", "outside"] = "inside"
        """Where the scale a_i stands."""
        gated: bool = False

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        if config.num_terms < 1:
            raise ValueError(f"series_informed: num_terms is {config.num_terms}; at least 1 is needed")
        inner = inner_width(placement.width, config.expansion)
        self.terms = nn.ModuleList(_Term(inner, config, plain=number == 0) for number in range(config.num_terms))
        self.gate = Projection(placement.width, inner) if config.gated else None
        self.up = Projection(placement.width, inner)
        self.output = Projection(inner, placement.width)

    def transform(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        up = self.up(x)
        return self.output(self._series(up) if self.gate is None else self._series(self.gate(x)) * up)

    def _series(self, h: Tensor) -> Tensor:
        total, *others = (term(h) for term in self.terms)
        for term in others:
            total = total + term
        return total


class _Term(nn.Module):
    """One term with its numbers a_i and b_i; at first the plain activation, or close to a constant."""

    def __init__(self, width: int, config: SeriesInformed.Config, plain: bool) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.inside = config.affine == "inside"
        self.plain = plain
        self.scale = nn.Parameter(torch.empty(width))
        self.shift = nn.Parameter(torch.empty(width))

    def forward(self, h: Tensor) -> Tensor:
        """[..., E] -> [..., E]."""
        a, b = self.scale.to(h.dtype), self.shift.to(h.dtype)
        return self.activation(torch.addcmul(b, a, h)) if self.inside else a * self.activation(h + b)

    def reset_parameters(self) -> None:
        """One and zero, or small numbers."""
        if self.plain:
            nn.init.ones_(self.scale)
            nn.init.zeros_(self.shift)
        else:
            nn.init.normal_(self.scale, std=SMALL)
            nn.init.normal_(self.shift, std=SMALL)
