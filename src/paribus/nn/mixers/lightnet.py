"""LightNet: keys are a softmax over tokens, so far or in all, of each key channel by itself.

    z[t] = log(1 + Σ_{s ≤ t} exp(W_k x[s]))      k[t] = exp(W_k x[t] - z[t])        f[t] = exp(z[t-1] - z[t])
    S[t] = Diag(f[t]) S[t-1] + k[t] v[t]ᵀ        o[t] = S[t]ᵀ silu(W_q x[t])        y = W_o (silu(W₂ W₁ x) ⊙ norm(o))

which is o[t] = Σ_{s ≤ t} (exp(W_k x[s] - z[t]) · silu(W_q x[t])) v[s]. causal=False takes z over the whole segment,
natively: every token reads Σ_s exp(W_k x[s] - z) v[s]ᵀ, without decay. With position "cosine", q and k become
[q cos(t θ), q sin(t θ)] and [k cos(t θ), k sin(t θ)], t the true position.

Paper:    Qin et al. 2024, arXiv:2405.21022; published code was read, nothing was copied
Differs:  no biases; the gate's rank is the width of a head; of the paper's positions, the one in
          the layers (MD-LRPE) is "cosine" along one axis, off by default; that of a model's input is left out
Shapes:   q, k, f, v [B, T, H, K], K = D / H; state: S [B, H, K, K] and z [B, D] in float32; with
          position "cosine" q, k and f are 2 K wide, and S [B, H, 2 K, K]
Cost:     8 D² + 8 D K + 3 D C FLOPs a token in chunks of C tokens; state D (K + 1) numbers, whatever the length;
          D (2 K + 1) with position "cosine"
Raises:   ValueError if num_heads does not divide the width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..decay import LightNet as LightNetDecay
from ..decay import widened
from ..kernels.log_sum import segment_log_sum
from ..kernels.recurrence import recurrence
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..relative_positions import RelativePositions
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {"cosine": {"position": "cosine"}}


class LightNetState(NamedTuple):
    """What the mixer carries from token to token."""

    memory: Tensor | None
    """[B, H, K, K]: S."""
    log_sum: Tensor | None
    """[B, D]: z."""


class LightNet(Mixer):
    """Linear attention with keys that add up to one over time."""

    @dataclass(frozen=True)
    class Config:
        """Settings of LightNet."""

        num_heads: int = 4
        position: Literal["none", "cosine"] = "none"
        """Products of q and k times cos((t - s) θ), with learned angles θ."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        head_width = check_divisible(width, heads, "lightnet")
        self.query = nn.Linear(width, width, bias=False)
        self.decay = LightNetDecay(placement, (heads, head_width))
        self.value = nn.Linear(width, width, bias=False)
        self.gate_down = nn.Linear(width, head_width, bias=False)
        self.gate_up = nn.Linear(head_width, width, bias=False)
        self.position = (
            RelativePositions(config.position, heads, head_width, True) if config.position != "none" else None
        )
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: LightNetState | None, context: Context | None
    ) -> tuple[Tensor, LightNetState]:
        """The recurrence, normalised over all heads and gated."""
        memory, log_sum = state or (None, None)
        causal, heads = self.placement.causal, self.config.num_heads
        q, v = split_heads(functional.silu(self.query(x)), heads), split_heads(self.value(x), heads)
        if causal:
            gate = self.decay(x, rows, log_sum, context)
            k, log_decay, log_sum = gate.complement, gate.log_decay, gate.state
        else:
            logits = self.decay.logits(widened(self.decay.project(x)))
            k = split_heads((logits - segment_log_sum(logits, rows=rows)).exp(), heads)
            log_decay = None
        if self.position is not None:
            q, k = self.position(q, k, rows=rows)
            log_decay = None if log_decay is None else torch.cat([log_decay, log_decay], -1)
        o, memory = recurrence(q, k, v, log_decay, rows=rows, state=memory, causal=causal)
        y = self.output(functional.silu(self.gate_up(self.gate_down(x))) * self.norm(o.flatten(2)))
        return y, LightNetState(memory, log_sum)
