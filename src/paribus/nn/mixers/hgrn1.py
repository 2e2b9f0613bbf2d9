"""HGRN, the first: an elementwise recurrence whose forget gates have a lower bound that grows with depth.

    f = l + (1 − l) sigmoid(W_f x)      h[t] = f[t] ⊙ h[t−1] + (1 − f[t]) ⊙ silu(W_i x[t])
    y = W_o norm(silu(W_g x) ⊙ h)

Paper:    Qin et al. 2023, arXiv:2311.04823
Differs:  real, without the paper's complex phases; the lower bounds are fixed, lower_bound · layer /
          (layers − 1), where the paper learns them; RMSNorm, no biases; causal=False sums both directions,
          with the same gates
Shapes:   f, h [B, T, D]; state: h, D numbers
Cost:     8 D² FLOPs a token
Raises:   ValueError if lower_bound is not in [0, 1)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.scan import scan
from ..mixer import Context, Mixer, Placement
from ..norm import RMSNorm
from ..segments import Rows


class HGRN1(Mixer):
    """Hierarchically gated recurrent network, real form."""

    @dataclass(frozen=True)
    class Config:
        """Settings of HGRN."""

        lower_bound: float = 0.8
        """The forget gates' lower bound in the last layer; it is 0 in the first and grows evenly between."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        if not 0 <= config.lower_bound < 1:
            raise ValueError(f"hgrn1: lower_bound is {config.lower_bound}; a number in [0, 1) is needed")
        self.lower_bound = config.lower_bound * placement.layer / max(1, placement.num_layers - 1)
        width = placement.width
        self.forget = nn.Linear(width, width, bias=False)
        self.input = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """The recurrence runs in float32 or wider."""
        logits = self.forget(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        forgotten = (1 - self.lower_bound) * torch.sigmoid(-logits)  # 1 - f
        # Of the two forms each is exact where the other loses digits: f near one, f near zero.
        log_decay = torch.log1p(-forgotten) if self.lower_bound else functional.logsigmoid(logits)
        inputs = functional.silu(self.input(x))
        h, state = scan(forgotten * inputs, log_decay, rows=rows, state=state, causal=self.placement.causal)
        return self.output(self.norm(functional.silu(self.gate(x)) * h.to(inputs.dtype))), state
