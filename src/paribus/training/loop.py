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
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor

from paribus.data.batches import Batch, Batches
from paribus.evaluation.cost import (
    decoding_state_bytes,
    peak_memory_bytes,
    reset_peak_memory,
    training_flops_per_token,
)
from paribus.nn.backbone import on_meta, parameter_count
from paribus.nn.initialization import initialize
from paribus.nn.kernels.choice import Implementation, using
from paribus.nn.model_settings import read_model_config
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.optim.optimizer import make_optimizer

from .checkpoint import Progress, load_checkpoint, save_checkpoint
from .files import read_json, write_json
from .folder import locked, open_record, read_result
from .journal import Journal, read_journal
from .measure import UNMEASURED, Measure
from .run import Run

CHECKPOINT_SECONDS = 20.0
JOURNAL = "journal.jsonl"
_CALIBRATION_STEPS = 8
_LOGGED_STEPS = 200


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
    kernels: Implementation | None
    """Who computes the gated kernels in training steps; None is torch."""
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
        ValueError: settings that do not fit, a device or kernels that this machine lacks, a folder of another run, a
            run in progress elsewhere.
        OSError: the disk is full or fails; what was written before stays whole.
    """
    check_model(run)
    batches = Batches(run.data, cache)
    _check_tokenizer(run, batches)
    accelerator = _accelerator(run)
    kernels = _kernels(run)
    with locked(folder):  # only now: what was refused leaves no folder
        open_record(folder, run, batches.manifests(), accept_stale)
        result = read_result(folder)
        if result is None or result["journal_events"] > len(read_journal(folder / JOURNAL)):
            torch.set_num_threads(run.threads)
            trainer = _set_up(run, accelerator, kernels, batches, folder)
            result = _loop(trainer, folder, Measure(run, cache), watch)
            write_json(folder / "result.json", result)
        return result


def check_model(run: Run) -> None:
    """Build the model of `run` without memory.

    Raises:
        ValueError: a component, a size or a setting that does not exist or does not fit.
    """
    config = read_model_config(run.model)
    on_meta(config, ParibusForCausalLM)
    if config.max_position_embeddings < run.data.sequence_length:
        raise ValueError(
            f"model: max_position_embeddings is {config.max_position_embeddings}; "
            f"data: sequence_length is {run.data.sequence_length} and must not be longer"
        )


def build_model(run: Run) -> ParibusForCausalLM:
    """The model of `run` with its initial weights: a function of the run's seed and each parameter's name."""
    config = read_model_config(run.model)
    model = ParibusForCausalLM(config)
    initialize(model, run.seed, config.initialization)
    return model


def _check_tokenizer(run: Run, batches: Batches) -> None:
    vocab_size = read_model_config(run.model).vocab_size
    if vocab_size < batches.vocab_size:
        raise ValueError(
            f"model: vocab_size is {vocab_size}; the tokenizer '{run.data.tokenizer}' has {batches.vocab_size} tokens"
        )


def _accelerator(run: Run) -> Accelerator:
    # One process trains many runs, each with a device and precision of its own; the state is the process's.
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = "no" if run.precision == "fp32" else run.precision
    accelerator = Accelerator(cpu=run.device == "cpu", mixed_precision=precision)
    if accelerator.device.type != run.device:
        raise ValueError(f"run: device is '{run.device}'; this machine offers '{accelerator.device.type}'")
    return accelerator


def _kernels(run: Run) -> Implementation | None:
    if run.kernels == "torch":
        return None
    from paribus.nn.kernels.fla import implementation  # which takes seconds to import

    return implementation()


def _set_up(
    run: Run, accelerator: Accelerator, kernels: Implementation | None, batches: Batches, folder: Path
) -> Trainer:
    set_seed(run.seed)
    reset_peak_memory()
    model = build_model(run)
    if run.gradient_checkpointing:
        model.activation_checkpointing_enable()
    model.train().to(accelerator.device)
    flops_per_token = training_flops_per_token(model, run.data.sequence_length)
    optimizer = make_optimizer(run.optimizer, model.named_parameters())
    progress = load_checkpoint(folder / "checkpoints", model, optimizer, len(read_journal(folder / JOURNAL)))
    model, optimizer = accelerator.prepare(model, optimizer)
    trainer = Trainer(run, accelerator, batches, model, optimizer, kernels, 0, flops_per_token, progress)
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
    """Median time of a forward and backward pass, on weights and a generator that stay as they were."""
    times = []
    with torch.random.fork_rng():
        for step in range(_CALIBRATION_STEPS):
            begin = time.perf_counter()
            _forward_and_backward(trainer, trainer.batches.batch(step))
            times.append(time.perf_counter() - begin)
            trainer.optimizer.zero_grad()
    return sorted(times)[len(times) // 2]


def _loop(trainer: Trainer, folder: Path, measure: Measure, watch: Callable[[Tick], None]) -> dict[str, Any]:
    total, divergence = trainer.total_steps, None
    journal = Journal(folder / JOURNAL, trainer.progress.journal_events)
    saved_at = time.perf_counter()
    try:
        while trainer.progress.step < total and divergence is None:
            divergence = _advance(trainer, journal, measure, watch)
            finished = trainer.progress.step == total
            if divergence is None and (finished or time.perf_counter() - saved_at > CHECKPOINT_SECONDS):
                _save(trainer, journal, folder)
                saved_at = time.perf_counter()
        result = _result(trainer, measure, divergence)
        if result["divergence"] is not None:
            journal.write("diverged", trainer.progress.step, **_spent(trainer), divergence=result["divergence"])
        return {**result, "journal_events": journal.num_events}
    except OSError as problem:
        if problem.strerror and not problem.filename:
            problem.filename = str(folder)  # a full disk does not say where
        raise
    finally:
        journal.close()


def _advance(trainer: Trainer, journal: Journal, measure: Measure, watch: Callable[[Tick], None]) -> str | None:
    """One step, and what is logged and measured after it; returns what diverged."""
    begin = time.perf_counter()
    batch = trainer.batches.batch(trainer.progress.step)
    loss, gradient_norm, lr = _update(trainer, batch)
    seconds = time.perf_counter() - begin
    _count(trainer, batch, seconds)
    step, total = trainer.progress.step, trainer.total_steps
    divergence = _not_finite(step, loss=loss, gradient_norm=gradient_norm)
    if divergence is None and (step % max(1, total // _LOGGED_STEPS) == 0 or step == total):
        journal.write("train", step, **_spent(trainer), loss=loss, gradient_norm=gradient_norm, lr=lr)
        watch(Tick(step, total, loss, trainer.tokens_per_step / seconds))
    if divergence is None and step in _evaluated_steps(total, trainer.run.evaluation.points):
        bits = measure.validation(_unwrapped(trainer))
        divergence = _not_finite(step, bits_per_byte=bits)
        if divergence is None:
            journal.write("evaluate", step, **_spent(trainer), bits_per_byte=bits)
    return divergence


def _evaluated_steps(total_steps: int, points: int) -> set[int]:
    """`points` steps, evenly spaced, the last one at the end."""
    return {math.ceil(total_steps * point / points) for point in range(1, points + 1)}


def _save(trainer: Trainer, journal: Journal, folder: Path) -> None:
    journal.sync()
    trainer.progress = replace(trainer.progress, journal_events=journal.num_events)
    save_checkpoint(folder / "checkpoints", _unwrapped(trainer), trainer.optimizer.optimizer, trainer.progress)


def _update(trainer: Trainer, batch: Batch) -> tuple[float, float, float]:
    """One update; returns loss, gradient norm before clipping, and learning rate."""
    run = trainer.run
    lr = run.optimizer.lr * run.schedule.factor(trainer.progress.step, trainer.total_steps)
    for group in trainer.optimizer.param_groups:
        group["lr"] = lr
    loss = _forward_and_backward(trainer, batch)
    limit = run.optimizer.clip_norm or math.inf
    norm = trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), limit)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return loss.item(), float(norm), lr


def _forward_and_backward(trainer: Trainer, batch: Batch) -> Tensor:
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


def _count(trainer: Trainer, batch: Batch, seconds: float) -> None:
    digest = trainer.batches.digest(batch)
    trainer.progress = replace(
        trainer.progress,
        step=trainer.progress.step + 1,
        elapsed_seconds=trainer.progress.elapsed_seconds + seconds,
        batches_sha256=hashlib.sha256((trainer.progress.batches_sha256 + digest).encode()).hexdigest(),
    )


def _not_finite(step: int, **values: float) -> str | None:
    """What to say of the first of `values` that is not a finite number."""
    for name, value in values.items():
        if not math.isfinite(value):
            return f"{name.replace('_', ' ')} is {value} at step {step}"
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


def _result(trainer: Trainer, measure: Measure, divergence: str | None) -> dict[str, Any]:
    spent, model, step = _spent(trainer), _unwrapped(trainer), trainer.progress.step
    quality = UNMEASURED if divergence is not None else measure.quality(model)
    scores = quality["bits_per_byte"] or {}
    divergence = divergence or _not_finite(step, **{f"{split}_bits_per_byte": bits for split, bits in scores.items()})
    return {
        "status": "finished" if divergence is None else "diverged",
        "divergence": divergence,
        "step": step,
        "total_steps": trainer.total_steps,
        **spent,
        "epochs": trainer.batches.epochs_at(step),
        "flops_per_token": trainer.flops_per_token,
        "tokens_per_second": spent["tokens"] / max(spent["seconds"], 1e-9),
        "peak_memory_bytes": peak_memory_bytes(trainer.run.device),
        "parameters": parameter_count(model),
        "state_bytes": decoding_state_bytes(model),
        "documents_sha256": measure.documents_sha256,
        **(quality if divergence is None else UNMEASURED),
    }
