"""Stability as a measured outcome: how large updates and activations are, where the loss jumps, what was skipped.

Updates and activations are looked at on logged steps only. Of several processes, each sees the activations of its own
share of the batch; the journal has the main one's.

A spike begins at the first step whose loss lies more than 7 standard deviations above the mean of the 128 losses
before it (of at least 32), and ends at the first that does not; losses of a spike stay out of those 128. It is the
spike score of OLMo 2 (2025, arXiv:2501.00656, section 3), over a shorter window, counted in spikes and not in steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from paribus.nn.task import TaskModel
from paribus.optim.roles import parameter_roles
from paribus.optim.shares import whole

WINDOW = 128
"""Losses that the next one is compared with, at most."""
LEAST = 32
"""Losses needed before anything is called a spike."""
DEVIATIONS = 7.0


class Observer:
    """Looks at a model during one step: the output stream of every block, and how far the weights move.

    Attributes:
        wanted: whether the step at hand is looked at. The hooks stay: a compiled model does not see later ones.
    """

    def __init__(self, model: TaskModel) -> None:
        self.wanted = False
        roles = parameter_roles(model)
        self._weights: dict[str, list[nn.Parameter]] = {role: [] for role in sorted(set(roles.values()))}
        for name, parameter in model.named_parameters():
            self._weights[roles[name]].append(parameter)
        self._kept: dict[str, list[Tensor]] = {}
        blocks = model.model.blocks
        self._seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in blocks]
        for layer, block in enumerate(blocks):
            block.register_forward_hook(partial(self._see, layer))

    def keep_weights(self) -> None:
        """Remember the weights as they are before the optimizer's step."""
        self._kept = {role: [weight.detach().clone() for weight in weights] for role, weights in self._weights.items()}

    def facts(self) -> dict[str, Any]:
        """What the journal gets to know after the step; forgotten then. A number that is not finite is None.

        ``update_ratios``: by role, norm of the update over norm of the weights before it; ``activation_rms`` and
        ``activation_max``: by layer, of all elements of the block's output, all its streams together.
        """
        ratios = {role: _ratio(kept, self._weights[role]) for role, kept in self._kept.items()}
        rms, largest = [], []
        for seen in self._seen:
            pieces = torch.stack([torch.stack(pair) for pair in seen]).double()  # pieces 2
            rms.append(_finite(pieces[:, 0].square().mean().sqrt().item()))
            largest.append(_finite(pieces[:, 1].max().item()))
            seen.clear()
        self._kept = {}
        return {"update_ratios": ratios, "activation_rms": rms, "activation_max": largest}

    def _see(self, layer: int, block: nn.Module, arguments: Any, output: tuple[Tensor, Any]) -> None:
        if not (self.wanted and block.training):
            return
        streams = [output[0]] if isinstance(output[0], Tensor) else [x for x in output[0] if isinstance(x, Tensor)]
        x = torch.stack([stream.detach().float() for stream in streams])
        largest = x.abs().amax()
        scale = largest.clamp(min=torch.finfo(x.dtype).tiny)
        self._seen[layer].append(((x / scale).square().mean().sqrt() * scale, largest))  # squares do not overflow


@dataclass
class Stability:
    """What a run has shown so far; all of it is JSON and travels in checkpoints."""

    losses: list[float] = field(default_factory=list)
    """The last losses outside of spikes, at most `WINDOW`."""
    spikes: list[int] = field(default_factory=list)
    """Steps at which a spike began."""
    spiking: bool = False
    skipped_steps: int = 0
    """Updates left out because a gradient overflowed in fp16."""
    max_gradient_norm: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)
    """The newest facts of the observer."""
    largest: dict[str, list[float | None]] = field(default_factory=dict)
    """By layer, the largest RMS and the largest maximum that was seen."""

    def record(self, step: int, loss: float, gradient_norm: float, skipped: bool, observed: Mapping[str, Any]) -> None:
        """Take in one step whose loss is finite."""
        self.skipped_steps += skipped
        if not skipped:
            self.max_gradient_norm = max(self.max_gradient_norm, gradient_norm)
        spiking = is_spike(loss, self.losses)
        if spiking and not self.spiking:
            self.spikes.append(step)
        if not spiking:
            self.losses = [*self.losses, loss][-WINDOW:]
        self.spiking = spiking
        if observed:
            self.last = dict(observed)
            for key in ("activation_rms", "activation_max"):
                before = self.largest.get(key, observed[key])
                self.largest[key] = [_larger(*pair) for pair in zip(before, observed[key], strict=True)]

    def to_json(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return asdict(self)

    def result(self, first_not_finite_step: int | None) -> dict[str, Any]:
        """What result.json says."""
        return {
            "spikes": self.spikes,
            "skipped_steps": self.skipped_steps,
            "first_not_finite_step": first_not_finite_step,
            "max_gradient_norm": self.max_gradient_norm,
            "update_ratios": self.last.get("update_ratios", {}),
            **{
                key: {"last": self.last.get(key, []), "max": self.largest.get(key, [])}
                for key in ("activation_rms", "activation_max")
            },
        }


def is_spike(loss: float, before: list[float]) -> bool:
    """Whether `loss` stands out of the losses before it."""
    if len(before) < LEAST:
        return False
    return loss > statistics.fmean(before) + DEVIATIONS * statistics.pstdev(before)


def _ratio(before: list[Tensor], after: list[nn.Parameter]) -> float | None:
    moved = nn.utils.get_total_norm([new.detach() - old for new, old in zip(after, before, strict=True)])
    length = nn.utils.get_total_norm(before)
    return _finite((whole(moved) / whole(length)).item())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _larger(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)
