"""RWKV-6 (Finch) time mixing: a state that decays by channel, read before the token's own decay, with a bonus for it.

    x̂ = x[t-1]      lerp_i(x) = x + (x̂ - x) ⊙ (λ_i + tanh((x + (x̂ - x) ⊙ μ) A_i) B_i)       i = w, k, v, r, g
    w[t] = exp(-exp(d + tanh(lerp_w(x) A) B))      k, v, r, g = W lerp(x)
    o[t] = (S[t-1] + Diag(u) k[t] v[t]ᵀ)ᵀ r[t]     S[t] = Diag(w[t]) S[t-1] + k[t] v[t]ᵀ
    y = W_o (silu(g) ⊙ norm(o))

Paper:    Peng et al. 2024, arXiv:2404.05892; published code was read, nothing was copied
Differs:  time mixing only, a channel mixer is the block's; with causal=False x̂ is the mean of the token before and
          the token after, and the state is read from both sides, the token itself counting once by its bonus.
          Initial values: "house" gives μ, λ, d, u of the paper's first layer to every layer, and linear maps by their
          fan-in; "paper" as the published code by layer, but normal of the same size where that is orthogonal
Shapes:   r, k, w [B, T, H, K], v, g likewise, K = D / H; norm of each head by LayerNorm, with weights and biases;
          state: the last token [B, 1, D], and S [B, H, K, K] in float32
Cost:     10 D² + 20 D mix_rank + 4 D decay_rank + 4 D K + 3 D C FLOPs a token in chunks of C tokens; state D (K + 1)
          numbers, whatever the length
Raises:   ValueError if num_heads does not divide the width, or a rank is less than one
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..decay import widened
from ..initialization import fill_with
from ..kernels.recurrence import recurrence
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..segments import Rows
from ..token_shift import shift_tokens

PRESETS: dict[str, dict[str, Any]] = {"paper": {"initialization": "paper"}}

EPSILON = 64e-5  # of the norm in each head


class RWKV6State(NamedTuple):
    """What the mixer carries from token to token."""

    last: Tensor | None
    """[B, 1, D]: the last token."""
    memory: Tensor | None
    """[B, H, K, K]: S."""


class RWKV6(Mixer):
    """Finch's time mixing."""

    @dataclass(frozen=True)
    class Config:
        """Settings of RWKV-6."""

        num_heads: int = 4
        mix_rank: int = 32
        """Of each of the five maps that set the interpolation with the token before."""
        decay_rank: int = 64
        initialization: Literal["house", "paper"] = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        head_width = check_divisible(width, heads, "rwkv6")
        for name in ("mix_rank", "decay_rank"):
            if getattr(config, name) < 1:
                raise ValueError(f"rwkv6: {name} is {getattr(config, name)}; at least 1 is needed")
        self.first_mix = nn.Parameter(torch.empty(width))  # μ
        self.mixes = nn.Parameter(torch.empty(5, width))  # λ of w, k, v, r, g
        self.mix_down = nn.Linear(width, 5 * config.mix_rank, bias=False)
        self.mix_up = nn.Parameter(torch.empty(5, config.mix_rank, width))
        self.decay = nn.Parameter(torch.empty(width))  # d
        self.decay_down = nn.Linear(width, config.decay_rank, bias=False)
        self.decay_up = nn.Linear(config.decay_rank, width, bias=False)
        self.bonus = nn.Parameter(torch.empty(heads, head_width))  # u
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.norm = nn.GroupNorm(heads, width, eps=EPSILON)
        self.output = nn.Linear(width, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: RWKV6State | None, context: Context | None
    ) -> tuple[Tensor, RWKV6State]:
        """The recurrence, normalised in each head and gated."""
        last, memory = state or (None, None)
        causal, heads = self.placement.causal, self.config.num_heads
        neighbours, last = shift_tokens(x, rows=rows, state=last, causal=causal)
        to_decay, to_key, to_value, to_receptance, to_gate = self._interpolate(x, neighbours - x)
        decay = self.decay_up(torch.tanh(self.decay_down(to_decay)))
        log_decay = split_heads(-torch.exp(widened(self.decay) + widened(decay)), heads)
        k, v, r = (
            split_heads(project(part), heads)
            for project, part in ((self.key, to_key), (self.value, to_value), (self.receptance, to_receptance))
        )
        o, memory = recurrence(r, k, v, log_decay, rows=rows, state=memory, causal=causal, bonus=self.bonus)
        o = self.norm(o.flatten(2).flatten(0, 1)).view_as(x)
        return self.output(functional.silu(self.gate(to_gate)) * o), RWKV6State(last, memory)

    def _interpolate(self, x: Tensor, difference: Tensor) -> tuple[Tensor, ...]:
        """Five mixtures [B, T, D] of each token with its neighbour, which is `difference` away."""
        hidden = torch.tanh(self.mix_down(torch.addcmul(x, difference, self.first_mix)))
        hidden = hidden.flatten(0, 1).unflatten(-1, (5, -1)).transpose(0, 1)  # 5 B·T rank
        shares = torch.baddbmm(self.mixes[:, None].to(hidden.dtype), hidden, self.mix_up.to(hidden.dtype))
        return tuple(torch.addcmul(x, difference, share.view_as(x)) for share in shares)

    def reset_parameters(self) -> None:
        """Slow and fast channels, of which the slow ones mix in less of the token before."""
        paper, layer, layers = self.config.initialization == "paper", self.placement.layer, self.placement.num_layers
        depth = layer / max(1, layers - 1) if paper else 0.0  # from 0 to 1
        height = 1 - layer / layers if paper else 1.0  # from 1 to almost 0
        width, device = self.placement.width, self.decay.device
        channels = torch.arange(width, device=device)
        ramp, whole_ramp = channels / width, channels / max(1, width - 1)
        slow, fast = 1 - ramp**height, 1 - ramp ** (0.5 * height)
        fill_with(self.first_mix, lambda _: slow)
        fill_with(self.mixes, lambda _: torch.stack([slow, slow, slow - 0.3 * depth, fast, fast]))
        fill_with(self.decay, lambda _: -6 + 5 * whole_ramp ** (0.7 + 1.3 * depth))
        zigzag = 0.1 * ((channels + 1) % 3 - 1)
        fill_with(self.bonus, lambda _: (depth * (1 - whole_ramp) + zigzag).view_as(self.bonus))
        nn.init.uniform_(self.mix_up, -0.01, 0.01)
        if paper:
            nn.init.constant_(self.norm.weight, ((1 + layer) / layers) ** 0.7)
            nn.init.uniform_(self.decay_up.weight, -0.01, 0.01)
            for project in (self.mix_down, self.decay_down, self.output):
                nn.init.zeros_(project.weight)
            for project in (self.key, self.gate):
                nn.init.normal_(project.weight, std=0.1 * width**-0.5)
            for project in (self.receptance, self.value):
                nn.init.normal_(project.weight, std=width**-0.5)
