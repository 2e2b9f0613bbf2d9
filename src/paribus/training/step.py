"""One update of the weights: forward, backward, clipping, optimizer."""

from __future__ import annotations

import math

from torch import Tensor

from paribus.data.batches import Batch
from paribus.nn.kernels.choice import using

from .trainer import Trainer


def update(trainer: Trainer, batch: Batch) -> tuple[float, float, float]:
    """One update; returns loss, gradient norm before clipping, and learning rate."""
    run = trainer.run
    lr = run.optimizer.lr * run.schedule.factor(trainer.progress.step, trainer.total_steps, trainer.tokens_per_step)
    for group in trainer.optimizer.param_groups:
        group["lr"] = lr
    loss = forward_and_backward(trainer, batch)
    limit = run.optimizer.clip_norm or math.inf
    norm = trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), limit)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return loss.item(), float(norm), lr


def forward_and_backward(trainer: Trainer, batch: Batch) -> Tensor:
    """The loss of `batch`, and its gradients, by the kernels that the run has chosen."""
    with using(trainer.kernels):
        loss = _loss(trainer, batch)
        trainer.accelerator.backward(loss)
    return loss


def _loss(trainer: Trainer, batch: Batch) -> Tensor:
    rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
    mine = slice(rank, None, world)
    tokens = batch.tokens[mine].to(trainer.accelerator.device)
    segments = None if batch.segments is None else batch.segments[mine, :-1].to(tokens.device)
    output = trainer.model(
        input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], attention_mask=segments, return_logits=False
    )
    return output.loss
