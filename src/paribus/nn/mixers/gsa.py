"""Gated slot attention: softmax attention to a fixed number of slots, which forget as they are written.

    q, k, v = silu(W x)                          f[t] = sigmoid(W_f x[t])^(1/τ)
    K[t] = Diag(f[t]) K[t-1] + (1 - f[t]) k[t]ᵀ  V[t] = Diag(f[t]) V[t-1] + (1 - f[t]) v[t]ᵀ
    o[t] = V[t]ᵀ softmax(K[t] q[t])              y = W_o norm(silu(o))

Two passes of one recurrence: the slots' keys K are read on the value side, the slots' values V on the key side.

Paper:    Zhang et al. 2024, arXiv:2409.07146; published code was read, nothing was copied
Differs:  no biases; causal=False sums keys and values of the slots over both directions, the token itself once, before
          the softmax
Shapes:   q, k, v [B, T, H, K], K = D / H; f [B, T, H, M] for M slots; state: K and V [B, H, M, K] in float32
Cost:     8 D² + 2 D H M + 8 D M + 6 D C FLOPs a token in chunks of C tokens; state 2 D M numbers, whatever the length
Raises:   ValueError if num_heads does not divide the width, num_slots is less than one or temperature not positive
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..decay import widened
from ..kernels.recurrence import recurrence
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {"paper": {"num_slots": 64}}


class SlotState(NamedTuple):
    """What the slots hold."""

    keys: Tensor | None
    """[B, H, M, K]."""
    values: Tensor | None
    """[B, H, M, K]."""


class GatedSlotAttention(Mixer):
    """Attention to slots that forget."""

    @dataclass(frozen=True)
    class Config:
        """Settings of gated slot attention."""

        num_heads: int = 4
        num_slots: int | None = None
        """M, of each head; None: as many as it has channels."""
        temperature: float = 8.0
        """τ: the larger, the longer slots remember."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        head_width = check_divisible(width, heads, "gsa")
        num_slots = head_width if config.num_slots is None else config.num_slots
        if num_slots < 1:
            raise ValueError(f"gsa: num_slots is {num_slots}; at least 1 is needed")
        if config.temperature <= 0:
            raise ValueError(f"gsa: temperature is {config.temperature}; a positive number is needed")
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.forget = nn.Linear(width, heads * num_slots, bias=False)
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: SlotState | None, context: Context | None) -> tuple[Tensor, SlotState]:
        """Both passes, with a softmax over the slots between them."""
        keys, values = state or (None, None)
        causal, heads = self.placement.causal, self.config.num_heads
        projections = (self.query, self.key, self.value)
        q, k, v = (split_heads(functional.silu(project(x)), heads) for project in projections)
        log_decay = split_heads(functional.logsigmoid(widened(self.forget(x))), heads) / self.config.temperature
        write = -torch.expm1(log_decay)  # 1 - f, [B, T, H, M]
        scores, keys = recurrence(
            widened(q), write, k, log_decay, rows=rows, state=keys, causal=causal, readout="value"
        )
        weights = scores.softmax(-1)
        o, values = recurrence(weights, write, v, log_decay, rows=rows, state=values, causal=causal)
        return self.output(self.norm(functional.silu(o.flatten(2).to(v.dtype)))), SlotState(keys, values)
