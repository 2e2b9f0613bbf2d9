"""Decays, by name: how much of its state a gated kernel forgets before each token.

Every decay gives log a ≤ 0, one number for each head (granularity "scalar") or for each key channel of each
head ("channel"), in float32 or wider. A mixer whose keys are tied to it takes the `Gate.complement` 1 - a: as much is
written as is forgotten.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .kernels.log_sum import running_log_sum
from .lower_bound import LowerBound, bounded_log_decay
from .mixer import Context, Placement
from .segments import Rows
from .settings import nearest
from .state import State

Granularity = Literal["scalar", "channel"]


class Gate(NamedTuple):
    """What a decay says of the tokens of one forward."""

    log_decay: Tensor | None
    """None, [H] constant, [B, T, H] scalar or [B, T, H, K] per channel, as the kernels take it."""
    state: State = None
    """The decay's own state, for the mixer to keep and to hand back; None if it has none."""

    @property
    def complement(self) -> Tensor:
        """1 - a, to multiply keys [B, T, H, K] with; no cancellation near a = 1. Not without a decay."""
        assert self.log_decay is not None, "keys are tied to a decay that is none"
        factor = -torch.expm1(self.log_decay)
        return factor if factor.dim() == 4 else factor[..., None]


class Decay(nn.Module):
    """x [B, T, D] -> `Gate`.

    Args:
        shape: (H,) or (H, K), of one token's decays.
    """

    granularities: ClassVar[tuple[Granularity, ...]] = ("scalar", "channel")

    def __init__(self, placement: Placement, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.placement = placement
        self.shape = shape
        self.size = math.prod(shape)

    def forward(self, x: Tensor, rows: Rows, state: State, context: Context | None) -> Gate:
        """The gate of the tokens `x`; `state` is what an earlier call returned in its gate."""
        return Gate(self.log_decay(x, context))

    def log_decay(self, x: Tensor, context: Context | None) -> Tensor | None:
        """log a of each token from that token alone; all that a decay without a state needs to define."""
        raise NotImplementedError

    def gates(self, projected: Tensor) -> Tensor:
        """[B, T, size] -> [B, T, H] or [B, T, H, K] in float32 or wider, where exponents are to be taken."""
        return widened(projected).unflatten(-1, self.shape)


def widened(x: Tensor) -> Tensor:
    """`x` in float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class NoDecay(Decay):
    """a = 1: nothing is forgotten (Katharopoulos et al. 2020, arXiv:2006.16236)."""

    def log_decay(self, x: Tensor, context: Context | None) -> Tensor | None:
        """None, which the kernels take for no decay."""
        return None


class Constant(Decay):
    """Decays that depend on the head and the layer only, as `log_slopes` gives them."""

    granularities = ("scalar",)

    def log_decay(self, x: Tensor, context: Context | None) -> Tensor:
        """[H]."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return self.log_slopes(torch.arange(self.size, dtype=wide, device=x.device))

    def log_slopes(self, heads: Tensor) -> Tensor:
        """log a of the heads 0, 1, …, H - 1."""
        raise NotImplementedError

    @property
    def shallowness(self) -> float:
        """1 - layer / num_layers: 1 in the first layer, so that deep layers remember longer."""
        return 1 - self.placement.layer / self.placement.num_layers


class RetNetSlopes(Constant):
    """a = 1 - 2^(-5-h) for head h = 0, 1, … (RetNet, Sun et al. 2023, arXiv:2307.08621)."""

    def log_slopes(self, heads: Tensor) -> Tensor:
        """[H]."""
        return torch.log1p(-torch.exp2(-5 - heads))


class TNLSlopes(Constant):
    """log a = -(8 h / H) (1 - layer / num_layers) for head h = 1, …, H (TransNormerLLM, arXiv:2307.14995)."""

    def log_slopes(self, heads: Tensor) -> Tensor:
        """[H]."""
        return -8 * (heads + 1) / self.size * self.shallowness


class ALiBiSlopes(Constant):
    """log a = -2^(-8h/H) for head h = 1, …, H: ALiBi's penalty a token (Press et al. 2021, arXiv:2108.12409)."""

    def log_slopes(self, heads: Tensor) -> Tensor:
        """[H]."""
        return -torch.exp2(-8 * (heads + 1) / self.size)


class LogSpacedSlopes(Constant):
    """log a = -(1 - layer / num_layers) / n for memories n log-spaced from 2 to 256 tokens over the heads."""

    def log_slopes(self, heads: Tensor) -> Tensor:
        """[H]."""
        return -self.shallowness / _log_spaced(heads, self.size)


class Learned(Decay):
    """log a = -exp(w) / n: a free number w for each head or channel, zero at first, n as in constant_log_spaced."""

    def __init__(self, placement: Placement, shape: tuple[int, ...]) -> None:
        super().__init__(placement, shape)
        self.log_rate = nn.Parameter(torch.empty(shape))  # w

    def log_decay(self, x: Tensor, context: Context | None) -> Tensor:
        """[H], or [B, T, H, K] with the same for every token."""
        rates = widened(self.log_rate).exp()
        memories = _log_spaced(torch.arange(self.shape[0], dtype=rates.dtype, device=rates.device), self.shape[0])
        if rates.dim() == 1:
            return -rates / memories
        return (-rates / memories[:, None]).expand(*x.shape[:2], *self.shape)

    def reset_parameters(self) -> None:
        """Memories from 2 to 256 tokens."""
        nn.init.zeros_(self.log_rate)


def _log_spaced(heads: Tensor, num_heads: int) -> Tensor:
    """Memories from 2 to 256 tokens, evenly spaced in the logarithm; one head alone remembers 2."""
    return torch.exp2(1 + 7 * heads / max(1, num_heads - 1))


class Sigmoid(Decay):
    """a = sigmoid(W x + 4): the LSTM's forget gate with its customary offset (Gers, Schmidhuber, Cummins 2000)."""

    offset = 4.0

    def __init__(self, placement: Placement, shape: tuple[int, ...]) -> None:
        super().__init__(placement, shape)
        self.project = nn.Linear(placement.width, self.size, bias=False)

    def log_decay(self, x: Tensor, context: Context | None) -> Tensor:
        """[B, T, H] or [B, T, H, K]."""
        return functional.logsigmoid(self.gates(self.project(x)) + self.offset)


class SigmoidOffset(Decay):
    """a = sigmoid(W x + b), b learned from log(p / (1 - p)), p = 0.99 (HGRN3's simple decay, Qin et al. 2025)."""

    initial = 0.99

    def __init__(self, placement: Placement, shape: tuple[int, ...]) -> None:
        super().__init__(placement, shape)
        self.project = nn.Linear(placement.width, self.size, bias=False)
        self.bias = nn.Parameter(torch.empty(self.size))

    def log_decay(self, x: Tensor, context: Context | None) -> Tensor:
        """[B, T, H] or [B, T, H, K]."""
        return functional.logsigmoid(self.gates(self.project(x) + self.bias))

    def reset_parameters(self) -> None:
        """A token at which W x is zero keeps 99 % of the state."""
        nn.init.constant_(self.bias, math.log(self.initial / (1 - self.initial)))


class SigmoidTemperature(Decay):
    """log a = log sigmoid(W₂ W₁ x + b) / τ, τ = 16, rank 16: GLA (Yang et al. 2023, arXiv:2312.06635)."""

    temperature = 16.0
    rank = 16

    def __init__(self, placement: Placement, shape: tuple[int, ...]) -> None:
        super().__init__(placement, shape)
        self.down = nn.Linear(placement.width, self.rank, bias=False)
        self.up = nn.Linear(self.rank, self.size, bias=False)
        self.bias = nn.Parameter(torch.empty(self.size))

    def log_decay(self, x: Tensor, context: Context | None) -> Tensor:
        """[B, T, H] or [B, T, H, K]."""
        return functional.logsigmoid(self.gates(self.up(self.down(x)) + self.bias)) / self.temperature

    def reset_parameters(self) -> None:
        """Bias zero: a state is remembered for some 16 / log 2 = 23 tokens."""
        nn.init.zeros_(self.bias)


class LowerBounded(Decay):
    """a = l + (1 - l) sigmoid(W x) with bounds l that rise with depth and are learned: HGRN2 (arXiv:2404.07904)."""

    def __init__(self, placement: Placement, shape: tuple[int, ...]) -> None:
        super().__init__(placement, shape)
        self.project = nn.Linear(placement.width, self.size, bias=False)
        self.bound = LowerBound(placement, self.size)

    def log_decay(self, x: Tensor, context: Context | None) -> Tensor:
        """[B, T, H] or [B, T, H, K]."""
        return bounded_log_decay(self.gates(self.project(x)), self.bound(context).unflatten(0, self.shape))


class Mamba(Decay):
    """log a = -exp(A) softplus(W x + b): rate times step size, as Mamba-2 (Dao and Gu 2024, arXiv:2405.21060).

    Initially exp(A) lies between 1 and 16 and softplus(b) between 0.001 and 0.1, both about log-uniformly.
    """

    has_rate = True
    has_bias = True

    def __init__(self, placement: Placement, shape: tuple[int, ...]) -> None:
        super().__init__(placement, shape)
        self.project = nn.Linear(placement.width, self.size, bias=False)
        self.log_rate = nn.Parameter(torch.empty(self.shape)) if self.has_rate else None  # A
        self.bias = nn.Parameter(torch.empty(self.size)) if self.has_bias else None

    def log_decay(self, x: Tensor, context: Context | None) -> Tensor:
        """[B, T, H] or [B, T, H, K]."""
        projected = self.project(x)
        step = functional.softplus(self.gates(projected if self.bias is None else projected + self.bias))
        return -step if self.log_rate is None else -self.log_rate.to(step.dtype).exp() * step

    def reset_parameters(self) -> None:
        """Rates and step sizes spread over their ranges."""
        if self.log_rate is not None:
            nn.init.uniform_(self.log_rate, 0, math.log(16))
        if self.bias is not None:
            nn.init.uniform_(self.bias, math.log(math.expm1(0.001)), math.log(math.expm1(0.1)))


class MambaNoRate(Mamba):
    """log a = -softplus(W x + b): Mamba's without A."""

    has_rate = False


class MambaNoStep(Mamba):
    """log a = -exp(A) softplus(W x): Mamba's without the initial step sizes b."""

    has_bias = False


class MambaNoRateNoStep(Mamba):
    """log a = -softplus(W x): Mamba's without A and b, which is log sigmoid(-W x)."""

    has_rate = False
    has_bias = False


class LightNet(Decay):
    """a[t] = exp(z[t-1] - z[t]), z[t] = log(1 + Σ_{s ≤ t} exp(W x[s])) (LightNet, Qin et al. 2024, arXiv:2405.21022).

    Keys tied to it are exp(W x[t] - z[t]): a softmax over the tokens so far.
    """

    def __init__(self, placement: Placement, shape: tuple[int, ...]) -> None:
        super().__init__(placement, shape)
        self.project = nn.Linear(placement.width, self.size, bias=False)

    def forward(self, x: Tensor, rows: Rows, state: State, context: Context | None) -> Gate:
        """z[t] - z[t-1] is softplus(W x[t] - z[t-1]), in which nothing cancels; the state is z [B, size]."""
        logits = self.logits(widened(self.project(x)))
        before, z = running_log_sum(logits, rows=rows, state=state)
        return Gate(-functional.softplus(logits - before).unflatten(-1, self.shape), z)

    def logits(self, projected: Tensor) -> Tensor:
        """What is exponentiated and summed."""
        return projected


class LogSumSoftplus(LightNet):
    """a[t] = exp(z[t-1] - z[t]), z[t] = log(1 + Σ_{s ≤ t} softplus(W x[s])): LightNet's with tamer keys."""

    def logits(self, projected: Tensor) -> Tensor:
        """log softplus, which is the identity where softplus is an exponential to the last digit."""
        small = projected < -40
        return torch.where(small, projected, functional.softplus(projected.masked_fill(small, 0)).log())


DECAYS: dict[str, type[Decay]] = {
    "none": NoDecay,
    "constant_retnet": RetNetSlopes,
    "constant_tnl": TNLSlopes,
    "constant_alibi": ALiBiSlopes,
    "constant_log_spaced": LogSpacedSlopes,
    "learned": Learned,
    "sigmoid": Sigmoid,
    "sigmoid_offset": SigmoidOffset,
    "sigmoid_temperature": SigmoidTemperature,
    "lower_bounded": LowerBounded,
    "mamba": Mamba,
    "mamba_no_rate": MambaNoRate,
    "mamba_no_step": MambaNoStep,
    "mamba_no_rate_no_step": MambaNoRateNoStep,
    "lightnet": LightNet,
    "log_sum_softplus": LogSumSoftplus,
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
