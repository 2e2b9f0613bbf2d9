"""The optimizer of a run, by name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Role:
    """What differs for the parameters of one role."""

    lr: float = 1.0
    """Factor on the learning rate."""
    weight_decay: float | None = None
    """In place of the optimizer's; None leaves it."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with global gradient norm clipping.

    Weight decay acts on matrices only: not on norms, biases, decays and other vectors, and not on the embedding.
    """

    name: str = "adamw"
    lr: float = 3e-3
    """The peak of the schedule."""
    weight_decay: float = 0.1
    settings: dict[str, Any] = field(default_factory=dict)
    """Further arguments of that optimizer, such as betas, by its own names."""
    roles: dict[str, Role] = field(default_factory=dict)
    """Role of parameters (embedding, matrix, vector, head, gate) -> what differs for them."""
    clip_norm: float = 1.0
    """Gradients longer than this, over all parameters, are scaled down to it; 0 clips nothing."""
    clip_adaptive: float = 0.0
    """Largest norm of a gradient as a share of its weight's norm (adaptive gradient clipping); 0 clips nothing."""
    clip_scope: Literal["tensor", "unit"] = "tensor"
    """What adaptive clipping takes the norms over: whole tensors, or each output unit."""

    def __post_init__(self) -> None:
        for key in ("lr", "weight_decay", "clip_norm", "clip_adaptive"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"optimizer: {key} is {getattr(self, key)}; a number that is not negative is needed")


def make_optimizer(settings: Optimizer, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """The optimizer over the named `parameters`, in two groups: decayed matrices and everything else."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in parameters:
        (decayed if parameter.dim() >= 2 and "embedding" not in name else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        **{"betas": (0.9, 0.95), **settings.settings},
        fused=True,
    )
