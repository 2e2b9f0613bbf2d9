"""Short convolution: each channel over the last few tokens, between gates; the local half of hybrids.

    u = W_v x ⊙ g_in(x)        z[t] = Σ_j c[j] ⊙ u[t − j], j < taps        y = W_o (f(z) ⊙ g_out(x))

Paper:    none for the plain form; "lfm2": Liquid AI 2025, arXiv:2511.23404; "base_conv": Arora et al. 2023,
          arXiv:2312.04927
Differs:  no biases, which BaseConv's map and taps have; causal=False centres the taps
Shapes:   u, z [B, T, D], c [D, taps]; a gate g is 1 or a map W_g x, behind an activation if it is named; without
          projections W_v and W_o are left out; state: u of the last taps − 1 tokens
Cost:     2 D² FLOPs a token for each map, four with all gates; state (taps − 1) D numbers, whatever the length
Raises:   ValueError if taps is less than 1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.convolution import short_convolution
from ..mixer import Context, Mixer, Placement
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "base_conv": {"taps": 3, "projections": False, "output_gate": "linear"},
    "lfm2": {"taps": 3, "input_gate": "linear", "output_gate": "linear"},
    "depthwise": {"projections": False, "output_gate": "none"},
}

Gate = Literal["none", "linear", "silu", "sigmoid"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": functional.silu, "sigmoid": torch.sigmoid}


class ShortConvolution(Mixer):
    """Depthwise convolution with few taps."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the short convolution."""

        taps: int = 5
        """Tokens that each output sees, the present one included."""
        projections: bool = True
        """Map the channels before the convolution and after it."""
        input_gate: Gate = "none"
        """What multiplies the convolution's input."""
        output_gate: Gate = "silu"
        """What multiplies its output."""
        activation: Literal["none", "silu"] = "none"
        """f, behind the convolution."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        if config.taps < 1:
            raise ValueError(f"short_convolution: taps is {config.taps}; at least 1 is needed")
        width = placement.width
        self.convolution = nn.Parameter(torch.empty(width, config.taps))
        self.value, self.output = (_map(width, config.projections) for _ in range(2))
        self.input_gate = _map(width, config.input_gate != "none")
        self.output_gate = _map(width, config.output_gate != "none")

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """Gate, convolve, gate."""
        u = x if self.value is None else self.value(x)
        u = _gated(u, x, self.input_gate, self.config.input_gate)
        z, state = short_convolution(u, self.convolution, rows=rows, state=state, causal=self.placement.causal)
        if self.config.activation == "silu":
            z = functional.silu(z)
        z = _gated(z, x, self.output_gate, self.config.output_gate)
        return z if self.output is None else self.output(z), state

    def reset_parameters(self) -> None:
        """Taps by their number, so that the convolution keeps the size of its input."""
        nn.init.normal_(self.convolution, std=self.config.taps**-0.5)


def _map(width: int, wanted: bool) -> nn.Linear | None:
    return nn.Linear(width, width, bias=False) if wanted else None


def _gated(u: Tensor, x: Tensor, gate: nn.Linear | None, kind: Gate) -> Tensor:
    if gate is None:
        return u
    return u * gate(x) if kind == "linear" else u * ACTIVATIONS[kind](gate(x))
