"""Retention: linear attention with rotary positions and one fixed decay a head, a norm in each head and a gate.

    S[t] = a S[t-1] + R_t k[t] v[t]ᵀ        o[t] = S[t]ᵀ R_t q[t] / √K        y = W_o (swish(W_g x) ⊙ norm(o))
    a = 1 - 2^(-5 - h), h = 0 … H - 1

Paper:    Sun et al. 2023, arXiv:2307.08621; its published code was read, nothing of it copied
Differs:  angles are base^(-2 i / K) as elsewhere here, the code's base^(-i / (K / 2 - 1)); rows are not divided by the
          sum of their weights, which the norm would undo; the norm's weight is shared by all heads, and it has no
          bias; causal=False adds the same recurrence from the end, without counting the token itself twice;
          initialization "paper" is the code's: Xavier uniform, gain 2^(-2.5), and 1 for the output
Shapes:   q, k [B, T, H, K], K = D / H; v [B, T, H, V], V = value_expansion D / H; state S [B, H, K, V] in float32; t is
          the true position in the segment
Cost:     (4 + 6 e) D² + 2 (1 + e) D C + 4 e D K FLOPs a token in chunks of C tokens with e = value_expansion; state
          e D K numbers, whatever the length
Raises:   ValueError if num_heads does not divide the width or the values' width, for an unknown decay or one that is
          not scalar, and if K is odd with rotary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from ..decay import make_decay
from ..kernels.recurrence import recurrence
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import make_norm
from ..positions import rotary_tables, rotate
from ..segments import Rows
from ..state import State

PRESETS: dict[str, dict[str, Any]] = {
    "torchscale": {"norm": "simple_rms_norm"},
    "equal_values": {"value_expansion": 1.0},
    "no_position": {"position": "none"},
}


class RetentionState(NamedTuple):
    """What the mixer carries from token to token."""

    memory: Tensor | None
    """[B, H, K, V]: S."""
    decay: State
    """The decay's own, None for most."""


class Retention(Mixer):
    """Multi-scale retention."""

    @dataclass(frozen=True)
    class Config:
        """Settings of retention."""

        num_heads: int = 4
        value_expansion: float = 2.0
        """e, the width of all values together, relative to the model's width."""
        decay: str = "constant_retnet"
        """By its name among the decays; scalar ones only."""
        position: Literal["rotary", "none"] = "rotary"
        rotary_base: float = 10_000.0
        norm: Literal["layer_norm", "rms_norm", "simple_rms_norm"] = "layer_norm"
        """In each head: GroupNorm in the paper, RMSNorm without a weight in its code today."""
        initialization: Literal["house", "paper"] = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        values_width = int(width * config.value_expansion)
        self.key_width = check_divisible(width, heads, "retnet")
        value_width = check_divisible(values_width, heads, "retnet: value_expansion")
        if value_width < 1:
            raise ValueError(f"retnet: value_expansion {config.value_expansion} leaves no value channel for each head")
        if config.position == "rotary" and self.key_width % 2:
            raise ValueError(f"retnet: rotary positions need an even head width; it is {self.key_width}")
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, values_width, bias=False)
        self.gate = nn.Linear(width, values_width, bias=False)
        self.decay = make_decay(config.decay, placement, heads, self.key_width)
        self.norm = make_norm(config.norm, value_width)
        self.output = nn.Linear(values_width, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: RetentionState | None, context: Context | None
    ) -> tuple[Tensor, RetentionState]:
        """The recurrence, normalised in each head and gated."""
        memory, decay = state or (None, None)
        projections = (self.query, self.key, self.value)
        q, k, v = (split_heads(project(x), self.config.num_heads) for project in projections)
        if self.config.position == "rotary":
            tables = rotary_tables(rows.positions, self.key_width, self.config.rotary_base, q.dtype, context)
            q, k = rotate(q, *tables), rotate(k, *tables)
        forget = self.decay(x, rows, decay, context)
        q = q * self.key_width**-0.5
        o, memory = recurrence(q, k, v, forget.log_decay, rows=rows, state=memory, causal=self.placement.causal)
        y = self.output(functional.silu(self.gate(x)) * self.norm(o).flatten(2))
        return y, RetentionState(memory, forget.state)

    def reset_parameters(self) -> None:
        """The paper's values, if they are asked for."""
        if self.config.initialization == "paper":
            for layer in (self.query, self.key, self.value, self.gate):
                nn.init.xavier_uniform_(layer.weight, gain=2**-2.5)
            nn.init.xavier_uniform_(self.output.weight)
