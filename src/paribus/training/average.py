"""Weights that are evaluated and published in place of those that are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from paribus.optim.shares import share_as


class Average:
    """The exponential moving average of the weights after each step, in float32.

        average[t] = Σ d^(t-i) w[i] / Σ d^(t-i), over the steps i = 1 … t

    so that the initial weights have no part in it, and early averages are no nearer to zero (the bias correction of
    Adam, Kingma and Ba 2015, arXiv:1412.6980). Buffers are not averaged: they are the model's.

    Attributes:
        tensors: parameter name -> average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: parameter.detach().float().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after step number `step`, counted from 1."""
        share = (1 - self.decay) / (1 - self.decay**step)
        for name, parameter in model.named_parameters():
            self.tensors[name].lerp_(parameter.detach().float(), share)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from saved averages, exactly."""
        for name, tensor in self.tensors.items():
            tensor.copy_(share_as(tensors[name], tensor))


def averages_itself(optimizer: Any) -> bool:
    """Whether the optimizer tells weights to train from weights to evaluate, as schedule-free ones do."""
    return hasattr(optimizer, "eval")


@contextmanager
@torch.no_grad()
def evaluated_weights(model: nn.Module, optimizer: Any, average: Average | None) -> Iterator[bool]:
    """Have in `model`, for as long as the context lasts, the weights that are evaluated and published.

    The trained weights come back to the bit, which an optimizer that computes them back would not do.

    Args:
        optimizer: the bare one, in training mode.

    Yields:
        Whether they differ from those that are trained.
    """
    if average is None and not averages_itself(optimizer):
        yield False
        return
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    if average is None:
        optimizer.eval()
    else:
        for name, parameter in model.named_parameters():
            parameter.copy_(average.tensors[name])
    try:
        yield True
    finally:
        if average is None:
            optimizer.train()
        for parameter, weight in zip(model.parameters(), kept, strict=True):
            parameter.copy_(weight)
