"""Mixture of experts: every token goes through the k gated units, of N, to which a router gives most weight.

    p = softmax(W_r x)        y = Σ_{i in top k of p} g_i W_o,i (silu(W_g,i x) ⊙ W_u,i x) + shared(x)
    g_i = p_i / Σ_{j in top k} p_j, or p_i if not normalised
    load_balance = balance_loss · N Σ_i f_i P_i        router_z = router_z_loss · mean(logsumexp(W_r x)²)

Paper:    Shazeer et al. 2017, arXiv:1701.06538; losses: Fedus et al. 2021, Switch, arXiv:2101.03961, equations 4 to 6,
          and Zoph et al. 2022, ST-MoE, arXiv:2202.08906; shared experts: Dai et al. 2024, DeepSeekMoE,
          arXiv:2401.06066; defaults: Jiang et al. 2024, Mixtral, arXiv:2401.04088
Differs:  every token keeps its k experts. There is no capacity, since which tokens an expert drops depends on other
          rows and on tokens to come, and then a row alone, or a sequence in pieces, has other answers. Experts are
          SwiGLU in all presets, no noise is added to the router, and it computes in float32 or wider. f_i counts the
          choices of real tokens (f sums to k, as in transformers' Mixtral), P_i is the mean of p_i; both losses are of
          one forward of one process and are summed over layers, where that Mixtral averages f and P over layers.
          "deepseek_moe" has its paper's expert-level loss as it is written here, without its device-level one
Shapes:   x [B, T, D]; N experts with inner width E = round(expansion · D) each; shared: one gated unit of width
          num_shared_experts · E
Cost:     6 D E (k + num_shared_experts) + 2 D N FLOPs a token; 3 D E (N + num_shared_experts) + D N parameters
Raises:   ValueError if expansion leaves no inner channel; experts_per_token is not from 1 to num_experts; one expert a
          token is normalised, which leaves the router no gradient; a loss's weight or num_shared_experts is negative
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..channel import Channel, inner_width
from ..kernels.spacing import take
from ..mixer import Context, Placement
from ..projection import Projection
from ..stacked import SortedLinear
from ..state import State

PRESETS: dict[str, dict[str, Any]] = {
    "mixtral": {"expansion": 3.5},
    "switch": {"experts_per_token": 1, "normalise": False, "balance_loss": 0.01, "expansion": 8 / 3},
    "st_moe": {"balance_loss": 0.01, "router_z_loss": 0.001},
    "deepseek_moe": {
        "num_experts": 64,
        "experts_per_token": 6,
        "num_shared_experts": 2,
        "normalise": False,
        "balance_loss": 0.01,
        "expansion": 0.6875,
    },
}


class MixtureOfExperts(Channel):
    """Routed gated units."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the mixture of experts."""

        expansion: float = 4 / 3
        """Of one expert; with two experts a token, the FLOPs are those of a gated unit of 8/3."""
        num_experts: int = 8
        experts_per_token: int = 2
        normalise: bool = True
        """Weights of a token's experts sum to 1."""
        num_shared_experts: int = 0
        """Experts that every token goes through, beside those chosen."""
        balance_loss: float = 0.02
        router_z_loss: float = 0.0

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        _check(config)
        width, inner = placement.width, inner_width(placement.width, config.expansion)
        self.router = _Router(width, config.num_experts, bias=False)
        self.gate = SortedLinear(config.num_experts, width, inner)
        self.up = SortedLinear(config.num_experts, width, inner)
        self.output = SortedLinear(config.num_experts, inner, width)
        shared = config.num_shared_experts * inner
        self.shared = _GatedUnit(width, shared) if shared else None

    def forward(
        self,
        x: Tensor,
        *,
        segments: Tensor | None = None,
        state: State = None,
        keep_state: bool = False,
        context: Context | None = None,
    ) -> tuple[Tensor, State]:
        """[B, T, D] -> [B, T, D]; `context` takes the losses, which padding in `segments` has no part in."""
        tokens = x.flatten(0, 1)
        logits = self.router(tokens)
        p, weights, experts = self._route(logits)
        if context is not None:
            real = None if segments is None else segments.flatten() != 0
            self._add_losses(logits, p, experts, real, context)
        y = self._apply_experts(tokens, weights, experts)
        if self.shared is not None:
            y = y + self.shared(tokens)
        return y.view_as(x), None

    def _route(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities [M, N], and the weights and numbers [M, k] of each token's experts."""
        p = logits.softmax(-1)
        weights, experts = p.topk(self.config.experts_per_token, -1)
        if self.config.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return p, weights, experts

    def _apply_experts(self, tokens: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """[M, D] -> [M, D]. Tokens are sorted by expert, so that each expert is one product of matrices."""
        k = experts.shape[1]
        order = experts.flatten().argsort(stable=True)  # M k
        sizes = experts.flatten().bincount(minlength=self.config.num_experts).tolist()
        # Copies first, then a permutation: its backward pass adds nothing up in an order that could vary.
        chosen = take(tokens.repeat_interleave(k, 0), order)
        y = self.output(functional.silu(self.gate(chosen, sizes)) * self.up(chosen, sizes), sizes)
        y = take(y, order.argsort()).unflatten(0, (-1, k))  # M k D
        return torch.bmm(weights[:, None].to(y.dtype), y)[:, 0]

    def _add_losses(self, logits: Tensor, p: Tensor, experts: Tensor, real: Tensor | None, context: Context) -> None:
        """Both losses as means over the real tokens; logits, p [M, N], experts [M, k], real [M]."""
        shares = p.new_ones(len(p)) if real is None else real.to(p.dtype)
        shares = shares / shares.sum().clamp(min=1)
        if self.config.balance_loss:
            counts = p.new_zeros(p.shape[1])
            counts.index_add_(0, experts.flatten(), shares.repeat_interleave(experts.shape[1]))
            balance = p.shape[1] * (counts @ (shares @ p))
            context.add_loss("load_balance", self.config.balance_loss * balance)
        if self.config.router_z_loss:
            context.add_loss("router_z", self.config.router_z_loss * (shares @ logits.logsumexp(-1).square()))


class _Router(nn.Linear):
    """Logits in float32 or wider, under autocast too: rounded ones would choose other experts."""

    def forward(self, x: Tensor) -> Tensor:
        """[M, D] -> [M, N]."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(x.to(wide), self.weight.to(wide))


class _GatedUnit(nn.Module):
    """The shared experts, which are one gated unit."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = Projection(width, inner)
        self.up = Projection(width, inner)
        self.output = Projection(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[M, D] -> [M, D]."""
        y: Tensor = self.output(functional.silu(self.gate(x)) * self.up(x))
        return y


def _check(config: MixtureOfExperts.Config) -> None:
    k, N = config.experts_per_token, config.num_experts
    if not 1 <= k <= N:
        raise ValueError(f"mixture_of_experts: experts_per_token is {k}; from 1 to num_experts, {N}, is allowed")
    if k == 1 and config.normalise:
        raise ValueError(
            "mixture_of_experts: experts_per_token 1 needs normalise false, else the router learns nothing"
        )
    for name in ("num_shared_experts", "balance_loss", "router_z_loss"):
        if getattr(config, name) < 0:
            raise ValueError(f"mixture_of_experts: {name} is {getattr(config, name)}; at least 0 is needed")
