"""What networks share that make the taps of a long convolution out of its lags.

They compute in float32 or wider whatever the model computes in: bfloat16 does not tell lag 256 from lag 257.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .kernels.chunks import full_precision


def lags_for(length: int, causal: bool, weight: Tensor) -> Tensor:
    """Lags 0 to n - 1, or -(n - 1) to n - 1 for both directions, where and as precise as the network computes."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.arange(0 if causal else 1 - length, length, device=weight.device, dtype=wide)


def precisely(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The linear map of `x` in its own precision, autocast or not."""
    with full_precision(x):
        return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
