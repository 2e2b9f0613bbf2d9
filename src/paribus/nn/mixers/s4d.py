"""S4D: a diagonal state space with fixed, complex rates for each channel, then a gated map.

    h[t, n] = exp(Δ A[n]) h[t−1, n] + B'[n] x[t]      B'[n] = (exp(Δ A[n]) − 1) / A[n]
    v[t] = 2 Re Σ_n C[n] h[t, n] + D x[t]      y = W_v gelu(v) ⊙ sigmoid(W_g gelu(v))

Paper:    Gu et al. 2022, arXiv:2206.11893, with zero-order hold and B = 1; at the beginning A[n] is −1/2 + iπn
          (S4D-Lin) or −1/2 + i (M / π) (M / (2n + 1) − 1) with M = 2 N (S4D-Inv); nothing copied
Differs:  no biases; causal=False sums both directions with the same parameters
Shapes:   x, v [B, T, D]; A, C [N, D] complex, Δ [D]; state: h, 2 N D numbers; with form "convolution" all past inputs
Cost:     4 D² + 2 N D FLOPs a token; "convolution": 4 D² + 10 D log2(2 T), and 4 N D a lag, whatever the batch;
          decoding then reads D numbers for each past token
Raises:   ValueError if modes is less than one
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..initialization import fill_with
from ..kernels.convolution import convolution
from ..kernels.state_space import state_space_scan, sum_of_exponentials
from ..mixer import Context, Mixer, Placement
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "lin": {"spectrum": "lin"},
    "inv": {"spectrum": "inv"},
    "convolution": {"form": "convolution"},
}

STEPS = (0.001, 0.1)  # the shortest and the longest at the beginning


class S4D(Mixer):
    """Diagonal structured state space."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the state space."""

        modes: int = 32
        """N: each stands for itself and its conjugate, so the paper's state size is twice as many."""
        spectrum: Literal["lin", "inv"] = "lin"
        """The frequencies at the beginning."""
        form: Literal["scan", "convolution"] = "scan"
        """How the same function is computed: by its recurrence, or as one convolution, which trains faster in large
        batches and whose state grows with the text."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        if config.modes < 1:
            raise ValueError(f"s4d: modes is {config.modes}; at least 1 is needed")
        width, N = placement.width, config.modes
        self.log_damping = nn.Parameter(torch.empty(N, width))  # log −Re A
        self.frequency = nn.Parameter(torch.empty(N, width))  # Im A
        self.read = nn.Parameter(torch.empty(N, width, 2))  # C, real and imaginary
        self.log_step = nn.Parameter(torch.empty(width))  # log Δ
        self.skip = nn.Parameter(torch.empty(width))  # D
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """The recurrence runs in float32 or wider."""
        rate, read = self.system(torch.promote_types(x.dtype, torch.float32))
        causal = self.placement.causal
        if self.config.form == "scan":
            v, state = state_space_scan(x, None, rate, None, read, rows=rows, state=state, causal=causal)
        else:

            def taps(length: int) -> Tensor:
                past = sum_of_exponentials(rate, read, length)
                return past if causal else torch.cat([past[1:].flip(0), past])

            v, state = convolution(x, taps, rows=rows, state=state, causal=causal)
        v = functional.gelu(v + self.skip * x)
        return self.value(v) * torch.sigmoid(self.gate(v)), state

    def system(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Δ A and 2 C B', complex [N, D], in the complex type of `dtype`."""
        A = torch.complex(-self.log_damping.to(dtype).exp(), self.frequency.to(dtype))
        rate = A * self.log_step.to(dtype).exp()
        C = torch.view_as_complex(self.read.to(dtype))
        return rate, 2 * C * torch.expm1(rate) / A

    def reset_parameters(self) -> None:
        """A as published, C normal with variance one, Δ log-uniform from 0.001 to 0.1, D normal."""
        N = self.config.modes
        nn.init.constant_(self.log_damping, math.log(0.5))
        modes = torch.arange(N)[:, None]
        lin = math.pi * modes
        inv = 2 * N / math.pi * (2 * N / (2 * modes + 1) - 1)
        fill_with(self.frequency, lambda u: (lin if self.config.spectrum == "lin" else inv).to(u).expand_as(u))
        nn.init.normal_(self.read, std=0.5**0.5)
        nn.init.uniform_(self.log_step, math.log(STEPS[0]), math.log(STEPS[1]))
        nn.init.normal_(self.skip)
