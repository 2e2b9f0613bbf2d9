"""MetaLA: gated linear attention without keys of its own, which makes up for its decay at the token itself.

    u = silu(short_convolution(x))               a[t] = sigmoid(W_a u[t])^(1/16)    k[t] = 1 - a[t]
    S[t] = Diag(a[t]) S[t-1] + k[t] v[t]ᵀ        q, v, g = W u
    o[t] = S[t]ᵀ q[t] + sigmoid((q[t] · (w ⊙ k[t])) v[t])        y = W_o (silu(g) ⊙ norm(o))

The last summand is the self-augmentation: without it a token's own share is bounded by what it forgets.

Paper:    Chou et al. 2024, arXiv:2411.10741; published code was read, nothing was copied
Differs:  no biases, of which the published code has one in g; causal=False adds the same recurrence from the end,
          without counting the token itself twice, behind a centred convolution; "paper" initial values of W_q and W_a
          are Xavier-uniform with gain 2^(-2.5), as in the published code
Shapes:   q, k, a [B, T, H, K], K = key_expansion D / H; v, g [B, T, H, V], V = D / H; norm without weights, over V;
          state: the convolution's last taps - 1 inputs [B, taps - 1, D], and S [B, H, K, V] in float32
Cost:     8 D² + 4 D K + 2.5 D C FLOPs a token in chunks of C tokens with K = V / 2; state D (K + taps - 1) numbers
Raises:   ValueError if num_heads does not divide the width or the keys' width, or taps is less than one
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..decay import widened
from ..kernels.convolution import short_convolution
from ..kernels.recurrence import recurrence
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"initialization": "paper"},
    "bare": {"self_augmentation": False, "short_convolution": False},
}

TEMPERATURE = 16.0


class MetaLAState(NamedTuple):
    """What the mixer carries from token to token."""

    inputs: Tensor | None
    """[B, taps - 1, D]: the short convolution's; None without one."""
    memory: Tensor | None
    """[B, H, K, V]: S."""


class MetaLA(Mixer):
    """Linear attention of queries, decays and values only."""

    @dataclass(frozen=True)
    class Config:
        """Settings of MetaLA."""

        num_heads: int = 4
        key_expansion: float = 0.5
        """Width of all keys together, relative to the model's width."""
        self_augmentation: bool = True
        short_convolution: bool = True
        taps: int = 4
        """Tokens that the short convolution sees, the present one included."""
        initialization: Literal["house", "paper"] = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        self.head_width = check_divisible(width, heads, "metala")
        keys_width = int(width * config.key_expansion)
        key_width = check_divisible(keys_width, heads, "metala: key_expansion")
        if key_width < 1:
            raise ValueError(f"metala: key_expansion {config.key_expansion} leaves no key channel for each head")
        if config.taps < 1:
            raise ValueError(f"metala: taps is {config.taps}; at least 1 is needed")
        self.convolution = nn.Parameter(torch.empty(width, config.taps)) if config.short_convolution else None
        self.query = nn.Linear(width, keys_width, bias=False)
        self.decay = nn.Linear(width, keys_width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.augmentation = nn.Parameter(torch.empty(heads, key_width)) if config.self_augmentation else None  # w
        self.output = nn.Linear(width, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: MetaLAState | None, context: Context | None
    ) -> tuple[Tensor, MetaLAState]:
        """The recurrence, augmented, normalised in each head and gated."""
        inputs, memory = state or (None, None)
        causal, heads = self.placement.causal, self.config.num_heads
        if self.convolution is not None:
            x, inputs = short_convolution(x, self.convolution, rows=rows, state=inputs, causal=causal)
            x = functional.silu(x)
        q, v = split_heads(self.query(x), heads), split_heads(self.value(x), heads)
        log_decay = split_heads(functional.logsigmoid(widened(self.decay(x))), heads) / TEMPERATURE
        k = -torch.expm1(log_decay)
        o, memory = recurrence(q, k, v, log_decay, rows=rows, state=memory, causal=causal)
        if self.augmentation is not None:
            weight = (q * (self.augmentation * k)).sum(-1, keepdim=True)  # [B, T, H, 1]
            o = o + torch.sigmoid(weight * v).to(o.dtype)
        o = functional.layer_norm(o, (self.head_width,))
        return self.output(functional.silu(self.gate(x)) * o.flatten(2)), MetaLAState(inputs, memory)

    def reset_parameters(self) -> None:
        """Taps by their number, so that the convolution keeps the size of its input; no augmentation."""
        if self.convolution is not None:
            nn.init.normal_(self.convolution, std=self.config.taps**-0.5)
        if self.augmentation is not None:
            nn.init.zeros_(self.augmentation)
        if self.config.initialization == "paper":
            for project in (self.query, self.decay):
                nn.init.xavier_uniform_(project.weight, gain=2**-2.5)
