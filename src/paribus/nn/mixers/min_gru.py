"""minGRU: a gated recurrent unit whose gate and candidate look at the present token only.

    z = sigmoid(W_z x − b)      h[t] = (1 − z[t]) ⊙ h[t−1] + z[t] ⊙ g(W_h x[t])      y = W_o h
    g(x) = x + 1/2 for x ≥ 0, else sigmoid(x)

Paper:    Feng et al. 2024, arXiv:2410.01201, section 3.1 and appendix B; nothing copied
Differs:  an output map W_o whatever the expansion, no bias of W_h, h zero before the first token; computed as a plain
          recurrence, which is exact, where the paper takes logarithms to survive a running sum; causal=False sums
          both directions, with the same gates
Shapes:   z, h [B, T, E], E = expansion · D; state: h, E numbers
Cost:     6 D E FLOPs a token
Raises:   ValueError if expansion is not positive
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.scan import scan
from ..mixer import Context, Mixer, Placement
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {"wide": {"expansion": 2.0}, "linear": {"candidate": "linear"}}


def positive(x: Tensor) -> Tensor:
    """g: a continuous, increasing map onto the positive numbers that grows as its argument does."""
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


class MinGRU(Mixer):
    """Minimal gated recurrent unit."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the unit."""

        expansion: float = 1.0
        """E / D."""
        candidate: Literal["positive", "linear"] = "positive"
        """"linear": without g, as the paper's first form."""
        forget_bias: float = 0.0
        """b at the beginning, for every channel; greater ones remember longer."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        if config.expansion <= 0:
            raise ValueError(f"min_gru: expansion is {config.expansion}; a positive number is needed")
        expanded = max(1, round(config.expansion * placement.width))
        self.update = nn.Linear(placement.width, expanded, bias=False)
        self.forget_bias = nn.Parameter(torch.empty(expanded))
        self.candidate = nn.Linear(placement.width, expanded, bias=False)
        self.output = nn.Linear(expanded, placement.width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """The recurrence runs in float32 or wider."""
        compute = torch.promote_types(x.dtype, torch.float32)
        logits = (self.update(x) - self.forget_bias).to(compute)
        candidate = self.candidate(x).to(compute)
        if self.config.candidate == "positive":
            candidate = positive(candidate)
        log_decay = functional.logsigmoid(-logits)
        h, state = scan(logits.sigmoid() * candidate, log_decay, rows=rows, state=state, causal=self.placement.causal)
        return self.output(h.to(x.dtype)), state

    def reset_parameters(self) -> None:
        """The bias of the forget gate."""
        nn.init.constant_(self.forget_bias, self.config.forget_bias)
