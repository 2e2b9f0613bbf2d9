"""The training loop: `train` takes a run and a folder and leaves a result there.

Every step reads batch t, a pure function of the data settings and t. Killed at any moment, the next call continues from
the newest whole checkpoint and ends with the same bits.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from paribus.data.batches import Batch, Batches
from paribus.evaluation.cost import decoding_state_bytes, peak_memory_bytes
from paribus.nn.backbone import parameter_count
from paribus.nn.model_settings import read_model_config

from .checkpoint import save_checkpoint
from .files import write_json
from .folder import locked, open_record, read_result
from .journal import JOURNAL, Journal, read_journal
from .measure import UNMEASURED, Measure
from .model import check_model
from .run import Run
from .setup import find_kernels, make_accelerator, set_up
from .step import update
from .trainer import Trainer

CHECKPOINT_SECONDS = 20.0
_LOGGED_STEPS = 200


@dataclass(frozen=True)
class Tick:
    """What the loop tells whoever watches, after each logged step."""

    step: int
    total_steps: int
    loss: float
    tokens_per_second: float


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
    accelerator = make_accelerator(run)
    kernels = find_kernels(run)
    with locked(folder):  # only now: what was refused leaves no folder
        open_record(folder, run, batches.manifests(), accept_stale)
        result = read_result(folder)
        if result is None or result["journal_events"] > len(read_journal(folder / JOURNAL)):
            torch.set_num_threads(run.threads)
            trainer = set_up(run, accelerator, kernels, batches, folder)
            result = _loop(trainer, folder, Measure(run, cache), watch)
            write_json(folder / "result.json", result)
        return result


def _check_tokenizer(run: Run, batches: Batches) -> None:
    vocab_size = read_model_config(run.model).vocab_size
    if vocab_size < batches.vocab_size:
        raise ValueError(
            f"model: vocab_size is {vocab_size}; the tokenizer '{run.data.tokenizer}' has {batches.vocab_size} tokens"
        )


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
    loss, gradient_norm, lr = update(trainer, batch)
    seconds = time.perf_counter() - begin
    _count(trainer, batch, seconds)
    step, total = trainer.progress.step, trainer.total_steps
    divergence = _not_finite(step, loss=loss, gradient_norm=gradient_norm)
    if divergence is None and (step % max(1, total // _LOGGED_STEPS) == 0 or step == total):
        journal.write("train", step, **_spent(trainer), loss=loss, gradient_norm=gradient_norm, lr=lr)
        watch(Tick(step, total, loss, trainer.tokens_per_step / seconds))
    if divergence is None and step in _evaluated_steps(total, trainer.run.evaluation.points):
        bits = measure.validation(trainer.bare_model)
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
    save_checkpoint(folder / "checkpoints", trainer.bare_model, trainer.optimizer.optimizer, trainer.progress)


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


def _result(trainer: Trainer, measure: Measure, divergence: str | None) -> dict[str, Any]:
    spent, model, step = _spent(trainer), trainer.bare_model, trainer.progress.step
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
