"""RWKV's channel mixing: a squared-ReLU perceptron on each token mixed with the one before, behind a gate or not.

    x_k = x + (x̂ - x) ⊙ μ_k        x_r = x + (x̂ - x) ⊙ μ_r        x̂ = x[t-1]
    y = σ(W_r x_r) ⊙ W_o max(W_k x_k, 0)²        without receptance: y = W_o max(W_k x_k, 0)²

Paper:    Peng et al. 2023, RWKV-4, arXiv:2305.13048, and 2024, RWKV-5 and 6, arXiv:2404.05892, with receptance;
          Peng et al. 2025, RWKV-7, arXiv:2503.14456, without
Differs:  μ is the share of the token before, as from RWKV-6 on; RWKV-4 and 5 write the share 1 - μ of the token itself,
          which is the same function. E is not rounded to a multiple of 32. With causal=False x̂ is the mean of the token
          before and the token after. Initial values: μ[i] = 1 - i/D, the published code's first layer, in every layer;
          maps by their fan-in, where that code begins with W_o and W_r at zero
Shapes:   x [B, T, D]; inner [B, T, E] with E = round(expansion · D); state: the last token [B, 1, D]
Cost:     4 D E FLOPs a token, with receptance 2 D² more; state D numbers, whatever the length
Raises:   ValueError if expansion leaves no inner channel
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..channel import inner_width, squared_relu
from ..initialization import fill_with
from ..mixer import Context, Mixer, Placement
from ..projection import Projection
from ..segments import Rows
from ..token_shift import shift_tokens

PRESETS: dict[str, dict[str, Any]] = {
    "rwkv4": {"expansion": 4.0},
    "rwkv6": {"expansion": 3.5},
    "rwkv7": {"expansion": 4.0, "receptance": False},
}


class RWKVChannel(Mixer):
    """Squared ReLU between a token shift and a gate."""

    @dataclass(frozen=True)
    class Config:
        """Settings of RWKV's channel mixing."""

        expansion: float = 3.5
        receptance: bool = True
        """The gate σ(W_r x_r)."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, inner = placement.width, inner_width(placement.width, config.expansion)
        self.key_mix = nn.Parameter(torch.empty(width))  # μ_k
        self.key = Projection(width, inner)
        self.output = Projection(inner, width)
        self.receptance_mix = nn.Parameter(torch.empty(width)) if config.receptance else None  # μ_r
        self.receptance = Projection(width, width) if config.receptance else None

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """Shift, and the perceptron."""
        neighbours, state = shift_tokens(x, rows=rows, state=state, causal=self.placement.causal)
        difference = neighbours - x
        y = self.output(squared_relu(self.key(torch.addcmul(x, difference, self.key_mix.to(x.dtype)))))
        if self.receptance is None or self.receptance_mix is None:
            return y, state
        mixed = torch.addcmul(x, difference, self.receptance_mix.to(x.dtype))
        return torch.sigmoid(self.receptance(mixed)) * y, state

    def reset_parameters(self) -> None:
        """The first channels read the token before, the last ones the token itself."""
        for mix in (self.key_mix, self.receptance_mix):
            if mix is not None:
                fill_with(mix, lambda uniform: 1 - torch.arange(len(uniform), device=uniform.device) / len(uniform))
