"""The training loop: `train` takes a run and a folder and leaves a result there.

Every step reads batch t, a pure function of the data settings and t. Killed at any moment, the next call continues from
the newest whole checkpoint and ends with the same bits.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from paribus.data.batches import Batch, Batches
from paribus.evaluation.cost import peak_memory_bytes, reset_peak_memory, training_flops_per_token
from paribus.nn.config import read_model_config
from paribus.nn.initialization import initialize
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.optim.optimizer import make_optimizer

from .checkpoint import Progress, load_checkpoint, save_checkpoint
from .files import read_json, write_json
from .folder import locked, open_record, read_result
from .journal import Journal
from .measure import Measure
from .run import Run

CHECKPOINT_SECONDS = 20.0
_CALIBRATION_STEPS = 8


@dataclass(frozen=True)
class Tick:
    """What the loop tells whoever watches, after each logged step."""

    step: int
    total_steps: int
    loss: float
    tokens_per_second: float


@dataclass
class Trainer:
    """The live objects of one run."""

    run: Run
    accelerator: Accelerator
    batches: Batches
    model: Any
    optimizer: Any
    total_steps: int = 0
    flops_per_token: float = 0.0
    progress: Progress = field(default_factory=Progress)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one batch."""
        return self.run.data.batch_size * self.run.data.sequence_length


def train(
    run: Run,
    folder: Path,
    cache: Path,
    *,
    watch: Callable[[Tick], None] = lambda tick: None,
    accept_stale: bool = False,
) -> dict[str, Any]:
    """Train `run` in `folder`, or continue it, or return its result when it is finished.

    Args:
        cache: where prepared corpora lie.
        watch: called after each logged step.
        accept_stale: continue or return a run although the library's code changed since it began.

    Returns:
        The content of result.json; ``status`` is "finished" or "diverged".

    Raises:
        ValueError: settings that do not fit, a folder of another run, a run in progress elsewhere.
        OSError: the disk is full or fails; what was written before stays whole.
    """
    with locked(folder):
        torch.set_num_threads(run.threads)
        batches = Batches(run.data, cache)
        open_record(folder, run, batches.manifests(), accept_stale)
        result = read_result(folder)
        if result is None:
            trainer = _set_up(run, batches, folder)
            measure = Measure(run, cache)
            result = _loop(trainer, folder, measure, watch)
            write_json(folder / "result.json", result)
        return result


def build_model(run: Run) -> ParibusForCausalLM:
    """The model of `run` with its initial weights: a function of the run's seed and each parameter's name."""
    config = read_model_config(run.model)
    model = ParibusForCausalLM(config)
    initialize(model, run.seed, config.initialization)
    return model


def _set_up(run: Run, batches: Batches, folder: Path) -> Trainer:
    set_seed(run.seed)
    accelerator = Accelerator(cpu=run.device == "cpu", mixed_precision="no" if run.precision == "fp32" else run.precision)
    reset_peak_memory()
    model = build_model(run)
    if model.config.vocab_size < batches.vocab_size:
        raise ValueError(
            f"model: vocab_size is {model.config.vocab_size}; the tokenizer '{run.data.tokenizer}' "
            f"needs at least {batches.vocab_size}"
        )
    if run.gradient_checkpointing:
        model.activation_checkpointing_enable()
    model.train().to(accelerator.device)
    flops_per_token = training_flops_per_token(model, run.data.sequence_length)
    optimizer = make_optimizer(run.optimizer, model.named_parameters())
    progress = load_checkpoint(folder / "checkpoints", model, optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    trainer = Trainer(run, accelerator, batches, model, optimizer, 0, flops_per_token, progress)
    trainer.total_steps = _solve_steps(trainer, folder)
    return trainer


def _solve_steps(trainer: Trainer, folder: Path) -> int:
    """The budget as a number of steps; one in seconds is timed once and the answer kept in budget.json."""
    budget, tokens = trainer.run.budget, trainer.tokens_per_step
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        return max(1, round(budget.tokens / tokens))
    if budget.flops is not None:
        return max(1, round(budget.flops / (trainer.flops_per_token * tokens)))
    assert budget.seconds is not None, "Budget holds exactly one number"
    recorded = read_json(folder / "budget.json")
    if recorded is None:
        recorded = {"steps": max(1, round(budget.seconds / _seconds_per_step(trainer)))}
        write_json(folder / "budget.json", recorded)
    return int(recorded["steps"])


def _seconds_per_step(trainer: Trainer) -> float:
    """Median time of a forward and backward pass, on weights that stay as they were."""
    times = []
    for step in range(_CALIBRATION_STEPS):
        begin = time.perf_counter()
        trainer.accelerator.backward(_loss(trainer, trainer.batches.batch(step)))
        times.append(time.perf_counter() - begin)
        trainer.optimizer.zero_grad()
    return sorted(times)[len(times) // 2]


def _loop(trainer: Trainer, folder: Path, measure: Measure, watch: Callable[[Tick], None]) -> dict[str, Any]:
    run, total = trainer.run, trainer.total_steps
    log_every = max(1, total // 200)
    evaluate_at = {math.ceil(total * point / run.evaluation.points) for point in range(1, run.evaluation.points + 1)}
    journal = Journal(folder / "journal.jsonl", trainer.progress.step)
    saved_at = time.perf_counter()
    divergence = None
    try:
        while trainer.progress.step < total and divergence is None:
            begin = time.perf_counter()
            batch = trainer.batches.batch(trainer.progress.step)
            loss, gradient_norm, lr = _step(trainer, batch)
            _advance(trainer, batch, time.perf_counter() - begin)
            step = trainer.progress.step
            divergence = _divergence(step, loss, gradient_norm)
            if divergence is None and (step % log_every == 0 or step == total):
                speed = trainer.tokens_per_step / (time.perf_counter() - begin)
                journal.write("train", step, **_spent(trainer), loss=loss, gradient_norm=gradient_norm, lr=lr)
                watch(Tick(step, total, loss, speed))
            if divergence is None and step in evaluate_at:
                bits = measure.validation(_unwrapped(trainer))
                journal.write("evaluate", step, **_spent(trainer), bits_per_byte=bits)
            if divergence is None and (time.perf_counter() - saved_at > CHECKPOINT_SECONDS or step == total):
                save_checkpoint(folder / "checkpoints", _unwrapped(trainer), trainer.optimizer.optimizer, trainer.progress)
                saved_at = time.perf_counter()
        if divergence is not None:
            journal.write("diverged", trainer.progress.step, **_spent(trainer), divergence=divergence)
    finally:
        journal.close()
    return _result(trainer, folder, measure, divergence)


def _step(trainer: Trainer, batch: Batch) -> tuple[float, float, float]:
    """One update; returns loss, gradient norm before clipping, and learning rate."""
    run = trainer.run
    lr = run.optimizer.lr * run.schedule.factor(trainer.progress.step, trainer.total_steps)
    for group in trainer.optimizer.param_groups:
        group["lr"] = lr
    loss = _loss(trainer, batch)
    trainer.accelerator.backward(loss)
    limit = run.optimizer.clip_norm or math.inf
    norm = trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), limit)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return loss.item(), float(norm), lr


def _loss(trainer: Trainer, batch: Batch) -> Tensor:
    rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
    mine = slice(rank, None, world)
    tokens = batch.tokens[mine].to(trainer.accelerator.device)
    segments = None if batch.segments is None else batch.segments[mine, :-1].to(tokens.device)
    output = trainer.model(
        input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], attention_mask=segments, return_logits=False
    )
    return output.loss


def _advance(trainer: Trainer, batch: Batch, seconds: float) -> None:
    digest = trainer.batches.digest(batch)
    trainer.progress = replace(
        trainer.progress,
        step=trainer.progress.step + 1,
        elapsed_seconds=trainer.progress.elapsed_seconds + seconds,
        batches_sha256=hashlib.sha256((trainer.progress.batches_sha256 + digest).encode()).hexdigest(),
    )


def _divergence(step: int, loss: float, gradient_norm: float) -> str | None:
    for name, value in (("loss", loss), ("gradient norm", gradient_norm)):
        if not math.isfinite(value):
            return f"{name} is {value} at step {step}"
    return None


def _spent(trainer: Trainer) -> dict[str, Any]:
    tokens = trainer.progress.step * trainer.tokens_per_step
    return {
        "tokens": tokens,
        "flops": tokens * trainer.flops_per_token,
        "seconds": trainer.progress.elapsed_seconds,
        "batches_sha256": trainer.progress.batches_sha256,
    }


def _unwrapped(trainer: Trainer) -> ParibusForCausalLM:
    return trainer.accelerator.unwrap_model(trainer.model)


def _result(trainer: Trainer, folder: Path, measure: Measure, divergence: str | None) -> dict[str, Any]:
    spent = _spent(trainer)
    result = {
        "status": "finished" if divergence is None else "diverged",
        "divergence": divergence,
        "step": trainer.progress.step,
        "total_steps": trainer.total_steps,
        **spent,
        "flops_per_token": trainer.flops_per_token,
        "tokens_per_second": spent["tokens"] / max(spent["seconds"], 1e-9),
        "peak_memory_bytes": peak_memory_bytes(trainer.run.device),
    }
    return {**result, **measure.final(_unwrapped(trainer), finished=divergence is None)}
