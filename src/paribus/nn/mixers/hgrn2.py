"""HGRN2: the forget gate of each key channel is also its key, so that forgetting makes room for what is written.

    f[t] = l + (1 - l) sigmoid(W_f x[t])         k[t] = 1 - f[t]         q[t] = silu(W_q x[t])
    S[t] = Diag(f[t]) S[t-1] + k[t] v[t]ᵀ        o[t] = S[t]ᵀ q[t]       y = W_o norm(o)

The bounds l rise with depth and are learned by all layers together; the state expands with fewer, wider heads.

Paper:    Qin et al. 2024, arXiv:2404.07904; published code was read, nothing was copied
Differs:  no biases; f is any decay of the registry, in the paper "lower_bounded" per channel; keys that are not tied,
          or whose head has one decay only, are silu(W_k x), the latter times 1 - f if tied; causal=False adds the same
          recurrence from the end, without counting the token itself twice
Shapes:   q, k, f, v [B, T, H, K], K = D / H; state: S [B, H, K, K] in float32, and the decay's own
Cost:     8 D² + 4 D K + 3 D C FLOPs a token in chunks of C tokens; state D K numbers, whatever the length
Raises:   ValueError if num_heads does not divide the width, for an unknown decay or one without that granularity, and
          if keys are tied to a decay that is none
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from ..decay import make_decay
from ..kernels.recurrence import recurrence
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..segments import Rows
from ..state import State

PRESETS: dict[str, dict[str, Any]] = {
    "scalar": {"granularity": "scalar", "tied": False},
    "untied": {"tied": False},
}


class HGRN2State(NamedTuple):
    """What the mixer carries from token to token."""

    memory: Tensor | None
    """[B, H, K, K]: S."""
    decay: State
    """The decay's own, None for most."""


class HGRN2(Mixer):
    """Gated linear recurrence with state expansion; keys are what is forgotten."""

    @dataclass(frozen=True)
    class Config:
        """Settings of HGRN2."""

        num_heads: int = 4
        """D / num_heads is the expansion of the state."""
        decay: str = "lower_bounded"
        granularity: Literal["scalar", "channel"] = "channel"
        tied: bool = True
        """Keys are 1 - f, or multiplied by it where a head has one decay only."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        head_width = check_divisible(width, heads, "hgrn2")
        if config.tied and config.decay == "none":
            raise ValueError("hgrn2: tied keys need a decay, and decay is 'none'")
        self.query = nn.Linear(width, width, bias=False)
        free = not config.tied or config.granularity == "scalar"
        self.key = nn.Linear(width, width, bias=False) if free else None
        self.value = nn.Linear(width, width, bias=False)
        self.decay = make_decay(config.decay, placement, heads, head_width, config.granularity)
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: HGRN2State | None, context: Context | None
    ) -> tuple[Tensor, HGRN2State]:
        """The recurrence, normalised over all heads."""
        memory, decay = state or (None, None)
        heads = self.config.num_heads
        q, v = split_heads(functional.silu(self.query(x)), heads), split_heads(self.value(x), heads)
        gate = self.decay(x, rows, decay, context)
        if self.key is None:
            k = gate.complement
        else:
            k = split_heads(functional.silu(self.key(x)), heads)
            k = k * gate.complement.to(k.dtype) if self.config.tied else k
        o, memory = recurrence(q, k, v, gate.log_decay, rows=rows, state=memory, causal=self.placement.causal)
        return self.output(self.norm(o.flatten(2))), HGRN2State(memory, gate.state)
