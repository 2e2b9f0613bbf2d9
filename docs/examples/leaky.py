"""Leaky average: each channel remembers by a decay of its own, and a gate decides what is read.

    h[t] = a ⊙ h[t-1] + (1 − a) ⊙ W_v x[t]          y[t] = W_o (σ(W_g x[t]) ⊙ h[t])

Paper:    none; the plainest relative of HGRN (Qin et al. 2023, arXiv:2311.04823), whose decay depends on x
Differs:  nothing to differ from
Shapes:   h, a [B, T, E] with E = round(expansion · D); state [B, E]
Cost:     6 D E FLOPs a token; state E numbers, whatever T
Raises:   ValueError if expansion leaves no channel, or longest_memory is 1 token or less
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from paribus.nn.kernels.scan import scan
from paribus.nn.mixer import Context, Mixer, Placement
from paribus.nn.segments import Rows


class LeakyAverage(Mixer):
    """A gated moving average of every channel."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the leaky average."""

        expansion: float = 1.0
        """Channels of the average for each channel of the model."""
        longest_memory: float = 1024.0
        """Tokens after which the slowest channel has forgotten all but 1/e, before training."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width = placement.width
        inner = round(config.expansion * width)
        if inner < 1:
            raise ValueError(f"leaky: expansion {config.expansion} leaves no channel at width {width}")
        if config.longest_memory <= 1:
            raise ValueError(f"leaky: longest_memory is {config.longest_memory}; more than 1 token is needed")
        self.value = nn.Linear(width, inner, bias=False)
        self.gate = nn.Linear(width, inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)
        self.memory = nn.Parameter(torch.empty(inner))

    def reset_parameters(self) -> None:
        """Decays spread evenly, on a logarithmic scale, between about one token and the longest memory."""
        nn.init.uniform_(self.memory, 0.0, math.log(self.config.longest_memory))

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """Average with the scan kernel, which knows segments, padding and both directions."""
        log_decay = functional.logsigmoid(self.memory)  # E
        values = -torch.expm1(log_decay) * self.value(x)  # B T E
        h, state = scan(values, log_decay.expand_as(values), rows=rows, state=state, causal=self.placement.causal)
        return self.output(torch.sigmoid(self.gate(x)) * h), state
