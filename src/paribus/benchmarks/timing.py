"""Interleaved rounds: every candidate once a round, in alternating order, so that a busy machine slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""loss(model, inputs, targets)."""


def interleaved(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step in every round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in list(steps)[:: 1 if number % 2 else -1]:
            seconds[name].append(steps[name]())
    return {name: values[1:] for name, values in seconds.items()}


def ratios(mine: list[float], base: list[float], to: str) -> dict[str, Any]:
    """How many times faster `mine` is than `base`, round by round: the median and the quartiles."""
    found = [theirs / ours for ours, theirs in zip(mine, base, strict=True)]
    low, middle, high = quantiles(found, n=4) if len(found) > 1 else found * 3
    return {
        f"ratio_to_{to}": round(middle, 3),
        "ratio_quartile_1": round(low, 3),
        "ratio_quartile_3": round(high, 3),
        "rounds": len(found),
    }


def per_second(amount: int, seconds: list[float]) -> int:
    """By the median round."""
    return round(amount / median(seconds))


def training_step(
    model: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    *,
    clock: Callable[[], float] = time.perf_counter,
    half: bool = False,
) -> Callable[[], float]:
    """One update of `model`, as the training loop does it; returns how many seconds it took by `clock`.

    Args:
        half: forward in bfloat16 by autocast.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> float:
        begin = clock()
        with _autocast(half):
            value = loss(model, inputs, targets)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return clock() - begin

    return step


def _autocast(half: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()
