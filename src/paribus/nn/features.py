"""Feature maps, by name: what linear attention puts in the place of the exponential of a score.

A map φ makes of each head's queries and keys the vectors whose products φ(q) · φ(k) weigh values. Where no such
product is negative, their sum can be a denominator; the others need a norm in its place. Parameters are a head's own,
and queries and keys have a map each.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .initialization import fill_with
from .kernels.chunks import full_precision
from .settings import nearest


class Feature(nn.Module):
    """x [B, T, H, K] -> φ(x) [B, T, H, `width`], in float32 or wider, as the kernels sum them.

    Args:
        num_heads: H.
        head_width: K.
    """

    nonnegative: ClassVar[bool] = True
    """Whether φ(q) · φ(k) ≥ 0 for all q and k, so that a sum of them is a denominator."""

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_width = head_width

    @property
    def width(self) -> int:
        """How many features a head has."""
        return self.head_width

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H, K] -> [B, T, H, width]."""
        return self.map(x.to(torch.promote_types(x.dtype, torch.float32)))

    def map(self, x: Tensor) -> Tensor:
        """φ in float32 or wider."""
        raise NotImplementedError


class Identity(Feature):
    """φ(x) = x."""

    nonnegative = False

    def map(self, x: Tensor) -> Tensor:
        """x."""
        return x


class ReLU(Feature):
    """φ(x) = max(x, 0)."""

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, K]."""
        return x.relu()


class SquaredReLU(Feature):
    """φ(x) = max(x, 0)²."""

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, K]."""
        return x.relu().square()


class ELU(Feature):
    """φ(x) = elu(x), which is x above 0 and exp(x) - 1 below (TransNormer, Qin et al. 2022, arXiv:2210.10340)."""

    nonnegative = False

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, K]."""
        return functional.elu(x)


class ELUPlusOne(Feature):
    """φ(x) = elu(x) + 1 (Katharopoulos et al. 2020, arXiv:2006.16236)."""

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, K]."""
        return functional.elu(x) + 1


class SiLU(Feature):
    """φ(x) = x sigmoid(x) (TransNormerLLM, Qin et al. 2023, arXiv:2307.14995)."""

    nonnegative = False

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, K]."""
        return functional.silu(x)


class SigmoidFeature(Feature):
    """φ(x) = sigmoid(x)."""

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, K]."""
        return x.sigmoid()


class Softmax(Feature):
    """φ(x) = softmax over the channels of a head."""

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, K]."""
        return x.softmax(-1)


class DPFP(Feature):
    """φ(x) = r ⊙ roll(r), r = [max(x, 0), max(-x, 0)]: DPFP with ν = 1 (Schlag et al. 2021, arXiv:2102.11174)."""

    @property
    def width(self) -> int:
        """2 K."""
        return 2 * self.head_width

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, 2 K]."""
        r = torch.cat([x, -x], -1).relu()
        return r * r.roll(1, -1)


class Taylor(Feature):
    """φ(q) · φ(k) = 1 + s + s² / 2, s = q · k / √K: exp(s) to second order (Arora et al. 2024, arXiv:2402.18668)."""

    @property
    def width(self) -> int:
        """1 + K + K (K + 1) / 2."""
        return 1 + self.head_width + self.head_width * (self.head_width + 1) // 2

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, width]: a one, the channels, and their products."""
        x = x * self.head_width**-0.25
        return torch.cat([torch.ones_like(x[..., :1]), x, products(x) * 0.5**0.5], -1)


class Rebased(Feature):
    """φ(q) · φ(k) = (q' · k')² / K, x' = w ⊙ layer_norm(x) + b (ReBased, Aksenov et al. 2024, arXiv:2402.10644)."""

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__(num_heads, head_width)
        self.scale = nn.Parameter(torch.empty(num_heads, head_width))  # w
        self.shift = nn.Parameter(torch.empty(num_heads, head_width))  # b

    @property
    def width(self) -> int:
        """K (K + 1) / 2."""
        return self.head_width * (self.head_width + 1) // 2

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, width]."""
        x = functional.layer_norm(x, (self.head_width,)) * self.scale + self.shift
        return products(x * self.head_width**-0.25)

    def reset_parameters(self) -> None:
        """The norm alone."""
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)


class T2R(Feature):
    """φ(x) = max(W x + b, 0) with W and b learned (Kasai et al. 2021, arXiv:2103.13076)."""

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__(num_heads, head_width)
        self.weight = nn.Parameter(torch.empty(num_heads, head_width, head_width))  # W, transposed
        self.bias = nn.Parameter(torch.empty(num_heads, head_width))

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, K]."""
        return mapped(x, self.weight, self.bias).relu()

    def reset_parameters(self) -> None:
        """Weights keep the size of their input."""
        nn.init.normal_(self.weight, std=self.head_width**-0.5)
        nn.init.zeros_(self.bias)


class Hedgehog(Feature):
    """φ(x) = [softmax(W x + b), softmax(-W x - b)] with W and b learned (Zhang et al. 2024, arXiv:2402.04347)."""

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__(num_heads, head_width)
        self.weight = nn.Parameter(torch.empty(num_heads, head_width, head_width))  # W, transposed
        self.bias = nn.Parameter(torch.empty(num_heads, head_width))

    @property
    def width(self) -> int:
        """2 K."""
        return 2 * self.head_width

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, 2 K]."""
        z = mapped(x, self.weight, self.bias)
        return torch.cat([z.softmax(-1), (-z).softmax(-1)], -1)

    def reset_parameters(self) -> None:
        """W the identity, as in the paper."""
        fill_with(self.weight, lambda u: torch.eye(self.head_width).to(u).expand_as(u))
        nn.init.zeros_(self.bias)


class Performer(Feature):
    """φ(x) = exp(W z - ‖z‖² / 2), z = x / K^¼, whose products are exp(q · k / √K) on average over normal W.

    Positive random features (Choromanski et al. 2020, arXiv:2009.14794), but W is learned from a normal beginning and
    neither orthogonal nor drawn anew. φ never exceeds exp(‖w‖² / 2), so nothing is subtracted to keep it finite.
    """

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__(num_heads, head_width)
        self.weight = nn.Parameter(torch.empty(num_heads, head_width, head_width))  # W, transposed

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, K]."""
        z = x * self.head_width**-0.25
        return (mapped(z, self.weight) - z.square().sum(-1, keepdim=True) / 2).exp() * self.head_width**-0.5

    def reset_parameters(self) -> None:
        """W normal."""
        nn.init.normal_(self.weight)


class Hadamard(Feature):
    """φ(x) = (W x) ⊙ (U x) with W and U learned."""

    nonnegative = False

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__(num_heads, head_width)
        self.first = nn.Parameter(torch.empty(num_heads, head_width, head_width))  # W, transposed
        self.second = nn.Parameter(torch.empty(num_heads, head_width, head_width))  # U, transposed

    def map(self, x: Tensor) -> Tensor:
        """[B, T, H, K]."""
        return mapped(x, self.first) * mapped(x, self.second)

    def reset_parameters(self) -> None:
        """Both keep the size of their input."""
        for weight in (self.first, self.second):
            nn.init.normal_(weight, std=self.head_width**-0.5)


def mapped(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [B, T, H, K] times each head's weight [H, K, F], plus its bias [H, F], in the precision of `x`."""
    with full_precision(x):
        y = torch.einsum("bthk,hkf->bthf", x, weight.to(x.dtype))
    return y if bias is None else y + bias


def products(x: Tensor) -> Tensor:
    """All products of two channels, [..., K (K + 1) / 2], such that products(q) · products(k) = (q · k)².

    Channels are chosen by matrix products with ones and zeros: faster than indices, the more so backward.
    """
    K = x.shape[-1]
    first, second = torch.triu_indices(K, K, device=x.device)
    channels = torch.eye(K, dtype=x.dtype, device=x.device)
    weights = torch.where(first == second, 1, 2).to(x.dtype).sqrt()  # x_i x_j stands for x_j x_i too
    with full_precision(x):
        return (x @ channels[:, first]) * (x @ (channels[:, second] * weights))


FEATURES: dict[str, type[Feature]] = {
    "identity": Identity,
    "relu": ReLU,
    "relu_squared": SquaredReLU,
    "elu": ELU,
    "elu_one": ELUPlusOne,
    "silu": SiLU,
    "sigmoid": SigmoidFeature,
    "softmax": Softmax,
    "dpfp": DPFP,
    "taylor": Taylor,
    "rebased": Rebased,
    "t2r": T2R,
    "hedgehog": Hedgehog,
    "performer": Performer,
    "hadamard": Hadamard,
}


def make_feature(name: str, num_heads: int, head_width: int) -> Feature:
    """The feature map called `name` for heads of `head_width` channels.

    Raises:
        ValueError: unknown name.
    """
    if name not in FEATURES:
        raise ValueError(f"unknown feature '{name}'; {nearest(name, FEATURES)}")
    return FEATURES[name](num_heads, head_width)
