"""RWKV-7: a decaying state from which one key is removed and into which another is written, at rates of each channel.

    x_r, x_w, x_k, x_v, x_a, x_g = x[t] + μ ⊙ (x[t-1] - x[t])        r, k, v = W_r x_r, W_k x_k, W_v x_v
    w = exp(-e^-½ sigmoid(w₀ + W₂ tanh(W₁ x_w)))        a = sigmoid(a₀ + A₂ A₁ x_a)        g = G₂ sigmoid(G₁ x_g)
    v ← v + sigmoid(v₀ + V₂ V₁ x_v) ⊙ (v of the first layer - v)
    κ = ξ ⊙ k / ‖ξ ⊙ k‖        k̃ = k ⊙ (1 + (a - 1) ⊙ α)
    S[t] = (Diag(w) - (a ⊙ κ) κᵀ) S[t-1] + k̃ vᵀ        o = norm(S[t]ᵀ r) + (r · (ρ ⊙ k̃)) v        y = W_o (g ⊙ o)

Paper:    Peng et al. 2025, arXiv:2503.14456; the layer in flash-linear-attention was read, nothing copied
Differs:  initial values by default are the house's for all maps, with μ = ½, ξ = α = 1, ρ = 0, a₀ = 0, v₀ = 1 and w₀
          rising over the channels as in the published code; initialization "paper" takes all of the published code's,
          maps being normal instead of orthogonal. What rises over channels is added to parameters that start at zero.
          Ranks are settings. Where no earlier layer is an RWKV-7, v stays as it is. causal=False shifts by the mean of
          both neighbours and adds the same recurrence from the end, each token with its own w, read before its decay
          and write
Shapes:   r, w, k, v, a, κ [B, T, H, K], K = D / H; state: the last token [B, 1, D] and S [B, H, K, K] in float32
Cost:     8 D² + 4 D (R_w + R_a + R_v + R_g) + 8 D K + 18 D C + H C² FLOPs a token in chunks of C tokens; state
          D (K + 1) numbers
Raises:   ValueError if num_heads does not divide the width, or a rank is less than one
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..decay import widened
from ..delta_parts import Initialization, with_length
from ..kernels.delta import delta
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..segments import Rows
from ..token_shift import shift_tokens

PRESETS: dict[str, dict[str, Any]] = {"paper": {"initialization": "paper"}}


class RWKV7State(NamedTuple):
    """What the mixer carries from token to token."""

    last: Tensor | None
    """[B, 1, D]: the last token, for the shift."""
    memory: Tensor | None
    """[B, H, K, K]: S."""


class Starts(NamedTuple):
    """Where channels start: what is added to parameters that are zero at first; numbers or [D]."""

    shift: Tensor | float
    """[6, D]: μ of r, w, k, v, a, g."""
    decay: Tensor
    """w₀."""
    rate: Tensor | float
    """a₀."""
    value: Tensor | float
    """v₀."""
    removal: Tensor | float
    """ξ."""


class LowRank(nn.Module):
    """W₂ f(W₁ x) through few dimensions."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)

    def forward(self, x: Tensor, activation: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; no activation is the identity."""
        hidden = self.down(x)
        return self.up(hidden if activation is None else activation(hidden))


class RWKV7(Mixer):
    """The token mixer of RWKV-7."""

    @dataclass(frozen=True)
    class Config:
        """Settings of RWKV-7."""

        num_heads: int = 4
        rank: int = 32
        """Dimensions that decays, rates and shares of the first value go through; as published about 2.5 √D."""
        gate_rank: int = 64
        """Dimensions that the output gate goes through; as published about 5 √D."""
        initialization: Initialization = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        self.head_width = check_divisible(width, heads, "rwkv7")
        if min(config.rank, config.gate_rank) < 1:
            raise ValueError(f"rwkv7: rank {config.rank} and gate_rank {config.gate_rank} must be at least 1")
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.decay = LowRank(width, config.rank)
        self.rate = LowRank(width, config.rank)
        self.first_share = LowRank(width, config.rank) if placement.layer else None
        self.gate = LowRank(width, config.gate_rank)
        self.shift = nn.Parameter(torch.empty(6, width))  # μ
        self.decay_bias = nn.Parameter(torch.empty(width))  # w₀
        self.rate_bias = nn.Parameter(torch.empty(width))  # a₀
        self.first_bias = nn.Parameter(torch.empty(width)) if placement.layer else None  # v₀
        self.removal = nn.Parameter(torch.empty(width))  # ξ
        self.replacement = nn.Parameter(torch.empty(width))  # α
        self.bonus = nn.Parameter(torch.empty(heads, self.head_width))  # ρ
        self.norm_weight = nn.Parameter(torch.empty(width))
        self.norm_bias = nn.Parameter(torch.empty(width))

    def mix(
        self, x: Tensor, rows: Rows, state: RWKV7State | None, context: Context | None
    ) -> tuple[Tensor, RWKV7State]:
        """Shift, remove, write, read."""
        last, memory = state or (None, None)
        causal, heads, starts = self.placement.causal, self.config.num_heads, self.starts(x)
        neighbour, last = shift_tokens(x, rows=rows, state=last, causal=causal)
        shares = (self.shift + starts.shift).to(x.dtype).unbind()
        x_r, x_w, x_k, x_v, x_a, x_g = (torch.addcmul(x, share, neighbour - x) for share in shares)
        log_w = -math.exp(-0.5) * (widened(self.decay(x_w, torch.tanh)) + self.decay_bias + starts.decay).sigmoid()
        a = (self.rate(x_a) + self.rate_bias + starts.rate).sigmoid()
        k = self.key(x_k)
        removal = with_length(split_heads(k * (self.removal + starts.removal), heads), eps=1e-12)  # κ
        k = k * (1 + (a - 1) * self.replacement)
        v = self.mixed_value(x_v, starts, context)
        r, k, v, a, log_w = (split_heads(part, heads) for part in (self.receptance(x_r), k, v, a, log_w))
        o, memory = delta(
            r,
            a * removal,
            None,
            torch.ones_like(r[..., 0]),
            log_w,
            rows=rows,
            state=memory,
            causal=causal,
            erase=removal,
            erase_undecayed=True,
            write=(k, v),
        )
        own = (r * self.bonus * k).sum(-1, keepdim=True) * v
        y = (self.normalized(o) + own.flatten(2)) * self.gate(x_g, torch.sigmoid)
        return self.output(y), RWKV7State(last, memory)

    def mixed_value(self, x: Tensor, starts: Starts, context: Context | None) -> Tensor:
        """v [B, T, D] with its share of the first layer's, which a first layer leaves for the others."""
        v = self.value(x)
        if context is None:
            return v
        if context.first_value is None or context.first_value[0] == self.placement.layer:
            context.first_value = (self.placement.layer, split_heads(v, self.config.num_heads))
            return v
        if self.first_share is None or self.first_bias is None:
            return v
        share = (self.first_share(x) + self.first_bias + starts.value).sigmoid()
        return torch.lerp(v, context.first_value[1].flatten(2).to(v.dtype), share.to(v.dtype))

    def normalized(self, o: Tensor) -> Tensor:
        """o [B, T, H, K] with mean 0 and variance 1 in each head, scaled and moved: [B, T, D]."""
        o = functional.layer_norm(o, (self.head_width,), eps=1e-5 * self.head_width).flatten(2)
        return o * self.norm_weight + self.norm_bias

    def starts(self, x: Tensor) -> Starts:
        """The starts of this layer, by the published code's ramps over the channels."""
        wide = torch.promote_types(x.dtype, torch.float32)
        width, K, layer, layers = self.placement.width, self.head_width, self.placement.layer, self.placement.num_layers
        n = torch.arange(width, device=x.device, dtype=wide)
        ramp, depth = n / max(1, width - 1), layer / max(1, layers - 1)
        decay = 6 * ramp ** (1 + depth**0.3) - 5.5
        if self.config.initialization == "house":
            return Starts(0.5, decay, 0.0, 1.0, 1.0)
        exponents = n.new_tensor([[0.2], [0.9], [0.7], [0.7], [0.9], [0.2]]) * (1 - layer / layers)
        zigzag = 2 * (n % K) / max(1, K - 1) - 1
        zigzag = zigzag * zigzag.abs()
        rate, value, removal = -0.19 + 0.3 * zigzag + 0.4 * (ramp - 0.5), 0.73 - 0.4 * (ramp - 0.5), 0.76 - 0.1 * ramp
        shift = 1 - (n / width) ** exponents
        return Starts(shift, decay + 2.5 * zigzag, *(part.to(x.dtype) for part in (rate, value, removal)))

    def reset_parameters(self) -> None:
        """What has a start begins at zero; with "paper" the maps, the norm and the bonus begin as published."""
        for zero in (self.shift, self.decay_bias, self.rate_bias, self.first_bias, self.removal, self.norm_bias):
            if zero is not None:
                nn.init.zeros_(zero)
        published = self.config.initialization == "paper"
        nn.init.constant_(self.replacement, 1.02 if published else 1)
        nn.init.constant_(self.bonus, -0.04 if published else 0)
        depth = (self.placement.layer + 1) / self.placement.num_layers
        nn.init.constant_(self.norm_weight, depth**0.7 if published else 1)
        if not published:
            return
        for part, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0), (self.output, 0.0)):
            nn.init.normal_(part.weight, std=gain * self.placement.width**-0.5)
        for low in (self.decay, self.rate, self.first_share, self.gate):
            if low is not None:
                nn.init.zeros_(low.down.weight)
                nn.init.normal_(low.up.weight, std=0.1 * self.placement.width**-0.5)
