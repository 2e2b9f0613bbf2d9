"""One update of the weights: forward and backward, piece by piece, clipping, optimizer, moving average."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paribus.nn.kernels.choice import using
from paribus.optim.clipping import clip_adaptively
from paribus.optim.optimizer import set_learning_rate
from paribus.optim.shares import whole

from .task import Inputs
from .trainer import Trainer


@dataclass(frozen=True)
class Update:
    """What one update was made of."""

    losses: dict[str, float]
    """The parts of what was minimised, weighted, over the whole batch; the first is the task's own."""
    gradient_norm: float
    """Over all parameters, before any clipping."""
    lr: float
    skipped: bool
    """Whether the weights stayed as they were because a gradient overflowed in fp16, and a smaller scale may help."""
    observed: dict[str, Any]
    """What the observer saw; empty on steps that are not looked at."""

    @property
    def loss(self) -> float:
        """The task's own, over the whole batch: cross entropy in nats a token, or what else it minimises."""
        return next(iter(self.losses.values()))

    @property
    def must_be_finite(self) -> dict[str, float]:
        """What ends the run when it is not a finite number, by what it is called."""
        others = dict(list(self.losses.items())[1:])
        norm = {} if self.skipped else {"gradient_norm": self.gradient_norm}
        return {"loss": self.loss, **others, **norm}

    @property
    def facts(self) -> dict[str, Any]:
        """What the journal keeps of it: JSON."""
        return {
            "loss": self.loss,
            **({"losses": self.losses} if len(self.losses) > 1 else {}),
            "gradient_norm": None if self.skipped else self.gradient_norm,
            "lr": self.lr,
            **self.observed,
        }


def update(trainer: Trainer, inputs: Inputs, *, observe: bool = False) -> Update:
    """One update by one batch; with `observe`, activations and the way of the weights are looked at."""
    run, step, observer = trainer.run, trainer.progress.step, trainer.observer
    lr = run.optimizer.lr * run.schedule.factor(step, trainer.total_steps, trainer.task.tokens_per_step)
    set_learning_rate(trainer.optimizer, lr)
    observer.wanted = observe
    losses = forward_and_backward(trainer, inputs)
    observer.wanted = False
    norm = _clip(trainer)
    if observe:
        observer.keep_weights()
    skipped = _step(trainer)
    trainer.optimizer.zero_grad()
    if trainer.average is not None:
        trainer.average.update(trainer.bare_model, step + 1)
    return Update(
        losses=_values(trainer, losses),
        gradient_norm=norm,
        lr=lr,
        skipped=skipped,
        observed=observer.facts() if observe else {},
    )


def forward_and_backward(trainer: Trainer, inputs: Inputs) -> dict[str, Tensor]:
    """The gradients of the mean loss over all targets of a batch, by the kernels that the run has chosen.

    A piece counts by its share of the batch's targets, so that the task's loss and z-loss are those of the whole
    batch however it is cut. Other losses are means of the same weights over what each piece says.

    Returns:
        The parts of the loss, of this process's share times the number of processes.
    """
    totals: dict[str, Tensor] = {}
    pieces = list(_pieces(trainer, inputs))
    for number, (tensors, share) in enumerate(pieces, start=1):
        last = number == len(pieces)
        engine = trainer.accelerator
        with contextlib.nullcontext() if last else engine.no_sync(trainer.model), using(trainer.kernels):
            output = trainer.model(**tensors, **trainer.task.arguments)
            engine.backward(output.loss * share)
        for name, value in output.losses.items():
            totals[name] = totals.get(name, 0.0) + value.detach() * share
    return totals


def _pieces(trainer: Trainer, inputs: Inputs) -> Iterator[tuple[dict[str, Tensor | None], float]]:
    """What the model is given of this process's rows, piece by piece, and how much each counts.

    The engine takes the mean over processes, so a piece that has a share s of the targets counts s times their number.
    """
    rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
    device, num_targets = trainer.accelerator.device, inputs.num_targets
    total = max(1, int(num_targets.sum()))
    rows = torch.arange(rank, len(num_targets), world)
    for piece in rows.chunk(trainer.run.accumulation):
        tensors = {name: None if x is None else x[piece].to(device) for name, x in inputs.tensors.items()}
        yield tensors, int(num_targets[piece].sum()) * world / total


def _clip(trainer: Trainer) -> float:
    """Clip adaptively, then by the global norm, as the run says; returns the global norm before both."""
    optimizer, engine = trainer.run.optimizer, trainer.accelerator
    parameters = list(trainer.model.parameters())
    limit = optimizer.clip_norm or math.inf
    if not optimizer.clip_adaptive:
        return float(whole(engine.clip_grad_norm_(parameters, limit)))
    engine.unscale_gradients()
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    clip_adaptively(parameters, optimizer.clip_adaptive, optimizer.clip_scope)
    nn.utils.clip_grad_norm_(parameters, limit)  # not the engine's, which would unscale again
    return float(whole(norm))


def _step(trainer: Trainer) -> bool:
    """Let the optimizer step; returns whether it did not, and a smaller scale of the loss may help.

    An overflow shows in the scale. The engine says only whether the scaler called the optimizer; fused ones are always
    called, and find out for themselves.
    """
    scaler = trainer.accelerator.scaler
    before = 0.0 if scaler is None else scaler.get_scale()
    trainer.optimizer.step()
    return scaler is not None and 1 <= scaler.get_scale() < before


def _values(trainer: Trainer, losses: dict[str, Tensor]) -> dict[str, float]:
    """The parts as numbers, of all processes together."""
    values = trainer.accelerator.reduce(torch.stack(list(losses.values())), "mean").tolist()
    return dict(zip(losses, values, strict=True))
