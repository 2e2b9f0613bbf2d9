"""Decays, by name: how much of its state a gated kernel forgets before each token.

Every decay gives log a ≤ 0, one number for each head (granularity "scalar") or for each key channel of each
head ("channel"), in float32 or wider. When keys are tied to it, they are multiplied by its `complement` 1 - a: as
much is written as is forgotten.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .mixer import Placement
from .settings import nearest

Granularity = Literal["scalar", "channel"]


class Decay(nn.Module):
    """x [B, T, D] -> log a: None, [H] constant, [B, T, H] scalar or [B, T, H, K] per channel.

    Args:
        shape: (H,) or (H, K), of one token's decays.
    """

    granularities: ClassVar[tuple[Granularity, ...]] = ("scalar", "channel")

    def __init__(self, placement: Placement, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.placement = placement
        self.shape = shape
        self.size = math.prod(shape)

    def forward(self, x: Tensor) -> Tensor | None:
        """The logarithm of the decays, for the kernels."""
        raise NotImplementedError

    def gates(self, projected: Tensor) -> Tensor:
        """[B, T, size] -> [B, T, H] or [B, T, H, K] in float32 or wider, where exponents are to be taken."""
        return projected.to(torch.promote_types(projected.dtype, torch.float32)).unflatten(-1, self.shape)


class NoDecay(Decay):
    """a = 1: nothing is forgotten (Katharopoulos et al. 2020, arXiv:2006.16236)."""

    def forward(self, x: Tensor) -> None:
        """None, which the kernels take for no decay."""
        return


class Constant(Decay):
    """a_h = 1 - 2^(-5-h) for head h = 0, 1, …: RetNet's slopes (Sun et al. 2023, arXiv:2307.08621)."""

    granularities = ("scalar",)

    def forward(self, x: Tensor) -> Tensor:
        """[H]."""
        heads = torch.arange(self.size, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        return torch.log1p(-torch.exp2(-5 - heads))


class SigmoidTemperature(Decay):
    """log a = log sigmoid(W₂ W₁ x + b) / τ, τ = 16, rank 16: GLA (Yang et al. 2023, arXiv:2312.06635)."""

    temperature = 16.0
    rank = 16

    def __init__(self, placement: Placement, shape: tuple[int, ...]) -> None:
        super().__init__(placement, shape)
        self.down = nn.Linear(placement.width, self.rank, bias=False)
        self.up = nn.Linear(self.rank, self.size, bias=False)
        self.bias = nn.Parameter(torch.empty(self.size))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H] or [B, T, H, K]."""
        return functional.logsigmoid(self.gates(self.up(self.down(x)) + self.bias)) / self.temperature

    def reset_parameters(self) -> None:
        """Bias zero: a state is remembered for some 16 / log 2 = 23 tokens."""
        nn.init.zeros_(self.bias)


class Sigmoid(Decay):
    """a = sigmoid(W x + 4): the LSTM's forget gate with its customary offset (Gers, Schmidhuber, Cummins 2000)."""

    offset = 4.0

    def __init__(self, placement: Placement, shape: tuple[int, ...]) -> None:
        super().__init__(placement, shape)
        self.project = nn.Linear(placement.width, self.size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H] or [B, T, H, K]."""
        return functional.logsigmoid(self.gates(self.project(x)) + self.offset)


class LowerBounded(Decay):
    """a = l + (1 - l) sigmoid(W x), l = layer / num_layers: deep layers remember longer.

    HGRN2 (Qin et al. 2024, arXiv:2404.07904) at its beginning; its bounds are learned there, and fixed here.
    """

    def __init__(self, placement: Placement, shape: tuple[int, ...]) -> None:
        super().__init__(placement, shape)
        self.project = nn.Linear(placement.width, self.size, bias=False)
        self.bound = placement.layer / placement.num_layers

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H] or [B, T, H, K]."""
        log_gate = functional.logsigmoid(self.gates(self.project(x)))
        if not self.bound:
            return log_gate
        return torch.logaddexp(log_gate + math.log1p(-self.bound), log_gate.new_tensor(math.log(self.bound)))


class Mamba(Decay):
    """log a = -exp(A) softplus(W x + b): step size times rate, as Mamba-2 (Dao and Gu 2024, arXiv:2405.21060).

    Initially exp(A) lies between 1 and 16 and softplus(b) between 0.001 and 0.1, both about log-uniformly.
    """

    def __init__(self, placement: Placement, shape: tuple[int, ...]) -> None:
        super().__init__(placement, shape)
        self.project = nn.Linear(placement.width, self.size, bias=False)
        self.log_rate = nn.Parameter(torch.empty(self.shape))  # A
        self.bias = nn.Parameter(torch.empty(self.size))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H] or [B, T, H, K]."""
        step = functional.softplus(self.gates(self.project(x) + self.bias))
        return -self.log_rate.to(step.dtype).exp() * step

    def reset_parameters(self) -> None:
        """Rates and step sizes spread over their ranges."""
        nn.init.uniform_(self.log_rate, 0, math.log(16))
        nn.init.uniform_(self.bias, math.log(math.expm1(0.001)), math.log(math.expm1(0.1)))


DECAYS: dict[str, type[Decay]] = {
    "none": NoDecay,
    "constant": Constant,
    "sigmoid_temperature": SigmoidTemperature,
    "sigmoid": Sigmoid,
    "lower_bounded": LowerBounded,
    "mamba": Mamba,
}


def make_decay(
    name: str, placement: Placement, num_heads: int, key_width: int, granularity: Granularity = "scalar"
) -> Decay:
    """The decay called `name` for heads with keys of `key_width`.

    Raises:
        ValueError: unknown name, or a granularity that this decay does not have.
    """
    if name not in DECAYS:
        raise ValueError(f"unknown decay '{name}'; {nearest(name, DECAYS)}")
    allowed = DECAYS[name].granularities
    if granularity not in allowed:
        raise ValueError(f"granularity of decay '{name}' is '{granularity}'; allowed: {', '.join(allowed)}")
    return DECAYS[name](placement, (num_heads,) if granularity == "scalar" else (num_heads, key_width))


def complement(log_decay: Tensor) -> Tensor:
    """1 - a, the factor of keys [B, T, H, K] that are tied to the decay; no cancellation near a = 1."""
    factor = -torch.expm1(log_decay)
    return factor if factor.dim() == 4 else factor[..., None]
