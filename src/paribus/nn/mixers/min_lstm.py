"""minLSTM: an LSTM cell whose gates look at the present token only and sum to one.

    f, i = sigmoid(W_f x + b), sigmoid(W_i x + c)      f', i' = f / (f + i), i / (f + i)
    h[t] = f'[t] ⊙ h[t−1] + i'[t] ⊙ g(W_h x[t])      y = W_o h      g(x) = x + 1/2 for x ≥ 0, else sigmoid(x)

Paper:    Feng et al. 2024, arXiv:2410.01201, section 3.2 and appendix B; nothing copied
Differs:  an output map W_o whatever the expansion, no bias of W_h, h zero before the first token; computed as a plain
          recurrence, which is exact, where the paper takes logarithms to survive a running sum; causal=False sums
          both directions, with the same gates
Shapes:   f', i', h [B, T, E], E = expansion · D; state: h, E numbers
Cost:     8 D E FLOPs a token
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
from .min_gru import positive

PRESETS: dict[str, dict[str, Any]] = {"wide": {"expansion": 2.0}, "linear": {"candidate": "linear"}}


class MinLSTM(Mixer):
    """Minimal long short-term memory."""

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
            raise ValueError(f"min_lstm: expansion is {config.expansion}; a positive number is needed")
        expanded = max(1, round(config.expansion * placement.width))
        self.forget = nn.Linear(placement.width, expanded, bias=False)
        self.forget_bias = nn.Parameter(torch.empty(expanded))  # b
        self.take = nn.Linear(placement.width, expanded, bias=False)
        self.take_bias = nn.Parameter(torch.empty(expanded))  # c
        self.candidate = nn.Linear(placement.width, expanded, bias=False)
        self.output = nn.Linear(expanded, placement.width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """The recurrence runs in float32 or wider."""
        compute = torch.promote_types(x.dtype, torch.float32)
        log_forget = functional.logsigmoid((self.forget(x) + self.forget_bias).to(compute))
        log_take = functional.logsigmoid((self.take(x) + self.take_bias).to(compute))
        candidate = self.candidate(x).to(compute)
        if self.config.candidate == "positive":
            candidate = positive(candidate)
        # f / (f + i) is the sigmoid of log f − log i, which no strong gate can make 0 / 0.
        odds = log_forget - log_take
        taken = torch.sigmoid(-odds) * candidate
        h, state = scan(taken, functional.logsigmoid(odds), rows=rows, state=state, causal=self.placement.causal)
        return self.output(h.to(x.dtype)), state

    def reset_parameters(self) -> None:
        """The biases of the gates."""
        nn.init.constant_(self.forget_bias, self.config.forget_bias)
        nn.init.zeros_(self.take_bias)
