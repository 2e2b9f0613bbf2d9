"""Adaptive gradient clipping: gradients are measured by the weights that they change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from .shares import added_up

Scope = Literal["tensor", "unit"]
SMALLEST_NORM = 1e-3
"""Weights count as at least this long, so that what begins at zero can move."""


@torch.no_grad()
def clip_adaptively(parameters: Iterable[Tensor], clip: float, scope: Scope) -> None:
    """g ← g · min(1, clip · max(|w|, 1e-3) / |g|), in place (Brock et al. 2021, arXiv:2102.06171, equation 3).

    Every parameter is clipped, vectors and the head too.

    Args:
        clip: the longest that a gradient may be, as a share of its weight's norm.
        scope: what the norms are taken over: "tensor" is each whole parameter, "unit" each index of its first axis (an
            output of a linear map, a row of a table); a parameter of one axis is one unit, as in the paper's code.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        longest = clip * _norm(parameter, scope).clamp_(min=SMALLEST_NORM)
        norm = _norm(gradient, scope)
        gradient.mul_(torch.where(norm > longest, longest / norm, 1.0))


def _norm(tensor: Tensor, scope: Scope) -> Tensor:
    """Norms that multiply `tensor` without reshaping."""
    if scope == "tensor" or tensor.dim() < 2:
        return added_up(torch.linalg.vector_norm(tensor))
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim())), keepdim=True)
