"""Gated linear attention: linear attention whose state decays, by default each key channel at its own rate.

    S[t] = Diag(a[t]) S[t-1] + k[t] v[t]ᵀ        o[t] = S[t]ᵀ q[t] / √K        y = W_o (swish(W_g x) ⊙ norm(o))

Paper:    Yang et al. 2023, arXiv:2312.06635
Differs:  no biases but the decay's; the decay is any of the registry's, in the paper "sigmoid_temperature" per
          channel; causal=False adds the same recurrence from the end, without counting the token itself twice;
          initialization "paper" is that of the published code: every map Xavier uniform, gain 2^(-2.5)
Shapes:   q, k, a [B, T, H, K], K = key_expansion D / H; v [B, T, H, V], V = D / H; state [B, H, K, V] in float32
Cost:     8 D² + 4 D K + 3 D C FLOPs a token in chunks of C tokens with K = V / 2, and the decay's projections; state
          D K numbers, whatever the length
Raises:   ValueError if num_heads does not divide the width or the keys' width, for an unknown decay or one without
          that granularity, and if keys are tied to a decay that is none
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
    "simple": {"granularity": "scalar"},
    "tied": {"decay": "lower_bounded", "tied": True, "key_expansion": 1.0},
}


class GatedLinearState(NamedTuple):
    """What the mixer carries from token to token."""

    memory: Tensor | None
    """[B, H, K, V]: S."""
    decay: State
    """The decay's own, None for most."""


class GatedLinearAttention(Mixer):
    """Gated linear attention with a choice of decays."""

    @dataclass(frozen=True)
    class Config:
        """Settings of gated linear attention."""

        num_heads: int = 4
        key_expansion: float = 0.5
        """Width of all keys together, relative to the model's width."""
        decay: str = "sigmoid_temperature"
        granularity: Literal["scalar", "channel"] = "channel"
        tied: bool = False
        """Multiply the keys by 1 - a, so that as much is written as is forgotten."""
        initialization: Literal["house", "paper"] = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        head_width = check_divisible(width, heads, "gla")
        keys_width = int(width * config.key_expansion)
        self.key_width = check_divisible(keys_width, heads, "gla: key_expansion")
        if self.key_width < 1:
            raise ValueError(f"gla: key_expansion {config.key_expansion} leaves no key channel for each head")
        if config.tied and config.decay == "none":
            raise ValueError("gla: tied keys need a decay, and decay is 'none'")
        self.query = nn.Linear(width, keys_width, bias=False)
        self.key = nn.Linear(width, keys_width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.decay = make_decay(config.decay, placement, heads, self.key_width, config.granularity)
        self.norm = RMSNorm(head_width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: GatedLinearState | None, context: Context | None
    ) -> tuple[Tensor, GatedLinearState]:
        """The recurrence, normalised in each head and gated."""
        memory, decay = state or (None, None)
        projections = (self.query, self.key, self.value)
        q, k, v = (split_heads(project(x), self.config.num_heads) for project in projections)
        gate = self.decay(x, rows, decay, context)
        if self.config.tied:
            k = k * gate.complement.to(k.dtype)
        q = q * self.key_width**-0.5
        o, memory = recurrence(q, k, v, gate.log_decay, rows=rows, state=memory, causal=self.placement.causal)
        y = self.output(functional.silu(self.gate(x)) * self.norm(o).flatten(2))
        return y, GatedLinearState(memory, gate.state)

    def reset_parameters(self) -> None:
        """The paper's values, if they are asked for."""
        if self.config.initialization == "paper":
            for part in self.modules():
                if isinstance(part, nn.Linear):
                    nn.init.xavier_uniform_(part.weight, gain=2**-2.5)
