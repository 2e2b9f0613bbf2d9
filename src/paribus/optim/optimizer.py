"""The optimizer of a run, by name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with global gradient norm clipping.

    Weight decay acts on matrices only: not on norms, biases, decays and other vectors, and not on the embedding.
    """

    name: Literal["adamw"] = "adamw"
    lr: float = 3e-3
    """The peak of the schedule."""
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    """Gradients longer than this, over all parameters, are scaled down to it; 0 clips nothing."""

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer: betas are {list(self.betas)}; two numbers in [0, 1) are needed")
        for key in ("lr", "eps", "weight_decay", "clip_norm"):
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
    beta1, beta2 = settings.betas
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(beta1, beta2),
        eps=settings.eps,
        fused=True,
    )
