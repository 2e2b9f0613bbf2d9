"""Gated DeltaNet: a decaying state that is corrected where it is written, so that a key holds one value.

    q, k = silu(conv(W x)) / ‖·‖        v = silu(conv(W_v x))        β = sigmoid(W_β x)
    S[t] = (I - β[t] k[t] k[t]ᵀ) a[t] S[t-1] + β[t] k[t] v[t]ᵀ        o[t] = S[t]ᵀ q[t] / √K
    y = W_o (swish(W_g x) ⊙ norm(o))

Paper:    Yang et al. 2024, arXiv:2412.06464; without decay, DeltaNet: Yang et al. 2024, arXiv:2406.06484
Differs:  no biases but the decay's; the decay is any of the registry's, in the paper "mamba" and scalar; values are
          as wide as keys; causal=False adds the same recurrence from the end, without counting the token itself
          twice, behind a centred convolution
Shapes:   q, k, v [B, T, H, K], K = D / H; state: the convolution's last taps - 1 inputs, [B, taps - 1, 3 D], and
          S [B, H, K, K] in float32
Cost:     10 D² + 6 D K + 10 D C + H C² FLOPs a token in chunks of C tokens; state D (K + 3 taps - 3) numbers
Raises:   ValueError if num_heads does not divide the width, taps is less than one, or for an unknown decay or one
          without that granularity
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..decay import make_decay
from ..kernels.convolution import short_convolution
from ..kernels.delta import delta
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..segments import Rows
from ..state import State

PRESETS: dict[str, dict[str, Any]] = {
    "delta_net": {"decay": "none"},
    "channel": {"granularity": "channel"},
}


class GatedDeltaState(NamedTuple):
    """What the mixer carries from token to token."""

    inputs: Tensor | None
    """[B, taps - 1, 3 D]: the short convolution's."""
    memory: Tensor | None
    """[B, H, K, K]: S."""
    decay: State
    """The decay's own, None for most."""


class GatedDeltaNet(Mixer):
    """The gated delta rule behind a short convolution."""

    @dataclass(frozen=True)
    class Config:
        """Settings of Gated DeltaNet."""

        num_heads: int = 4
        taps: int = 4
        """Tokens that the short convolution sees, the present one included."""
        decay: str = "mamba"
        granularity: Literal["scalar", "channel"] = "scalar"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        self.head_width = check_divisible(width, heads, "gated_delta_net")
        if config.taps < 1:
            raise ValueError(f"gated_delta_net: taps is {config.taps}; at least 1 is needed")
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.strength = nn.Linear(width, heads, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.convolution = nn.Parameter(torch.empty(3 * width, config.taps))
        self.decay = make_decay(config.decay, placement, heads, self.head_width, config.granularity)
        self.norm = RMSNorm(self.head_width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: GatedDeltaState | None, context: Context | None
    ) -> tuple[Tensor, GatedDeltaState]:
        """The delta rule, normalised in each head and gated."""
        inputs, memory, decay = state or (None, None, None)
        causal, heads = self.placement.causal, self.config.num_heads
        u = torch.cat([self.query(x), self.key(x), self.value(x)], -1)
        u, inputs = short_convolution(u, self.convolution, rows=rows, state=inputs, causal=causal)
        q, k, v = (split_heads(part, heads) for part in functional.silu(u).chunk(3, -1))
        q = functional.normalize(q, dim=-1) * self.head_width**-0.5
        k = functional.normalize(k, dim=-1)
        strength = self.strength(x).sigmoid()
        gate = self.decay(x, rows, decay, context)
        o, memory = delta(q, k, v, strength, gate.log_decay, rows=rows, state=memory, causal=causal)
        y = self.output(functional.silu(self.gate(x)) * self.norm(o).flatten(2))
        return y, GatedDeltaState(inputs, memory, gate.state)

    def reset_parameters(self) -> None:
        """Taps by their number, so that the convolution keeps the size of its input."""
        nn.init.normal_(self.convolution, std=self.config.taps**-0.5)
