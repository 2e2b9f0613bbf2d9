"""The training loop: `train` takes a run and a folder and leaves a result there.

Every step reads batch t, a pure function of the data settings and t. Killed at any moment, the next call continues from
the newest whole checkpoint and ends with the same bits.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from paribus.evaluation.cost import decoding_state_bytes, peak_memory_bytes
from paribus.nn.backbone import parameter_count
from paribus.optim.packing import optimizer_state_bytes

from .checkpoint import gather, save_checkpoint
from .files import write_json
from .folder import open_record, read_result
from .journal import JOURNAL, Journal, read_journal
from .model import check_model
from .ranks import alike, check_launch, locked_by_one, of_main, seed_step, together
from .run import Run
from .setup import check_engine, find_kernels, make_accelerator, set_up
from .step import update
from .task import Measure, Quality, make_task
from .trace import Trace, TracedSteps
from .trackers import check_trackers, track, tracking
from .trainer import Trainer

CHECKPOINT_SECONDS = 20.0
_LOGGED_STEPS = 200
_QUALITY = [field.name for field in fields(Quality)]


@dataclass(frozen=True)
class Tick:
    """What the loop tells whoever watches, after each logged step."""

    step: int
    total_steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float
    """If the steps to come take as long as this one."""


def train(
    run: Run,
    folder: Path,
    cache: Path,
    *,
    watch: Callable[[Tick], None] = lambda tick: None,
    accept_stale: bool = False,
    trace: str | None = None,
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """Train `run` in `folder`, or continue it, or return its result when it is finished.

    Args:
        cache: where prepared corpora lie.
        watch: called after each logged step.
        accept_stale: continue or return a run although the library's code changed since it began.
        trace: steps to profile, such as "10-15"; see `paribus.training.trace`. It changes no number.
        trackers: names of experiment trackers to log to as well, as Accelerate knows them, such as "tensorboard".

    Returns:
        The content of result.json; ``status`` is "finished" or "diverged".

    Raises:
        ValueError: settings that do not fit, a device or kernels that this machine lacks, a folder of another run, a
            run in progress elsewhere.
        OSError: the disk is full or fails; what was written before stays whole.
    """
    with alike():
        check_model(run)
        check_engine(run)
        check_trackers(trackers)
        steps = None if trace is None else TracedSteps.parse(trace)
        accelerator = make_accelerator(run, trackers, folder)
        check_launch(accelerator, run)
    with together(accelerator):
        task = make_task(run)
        batches = task.batches(cache)
        kernels = find_kernels(run)
    with locked_by_one(accelerator, folder):  # only now: what was refused leaves no folder
        with together(accelerator):
            if accelerator.is_main_process:
                open_record(folder, run, batches.manifests(), accept_stale, accelerator.num_processes)
        result = of_main(accelerator, _whole_result(folder))
        if result is not None and steps is not None:
            with alike():
                raise ValueError(f"trace is '{trace}'; this run is finished, all {result['step']} steps are done")
        if result is None:
            torch.set_num_threads(run.threads)
            trainer = set_up(task, accelerator, kernels, batches, folder)
            if steps is not None:
                steps.check(trainer.progress.step, trainer.total_steps)
            with tracking(accelerator, run):
                result = _loop(trainer, folder, task.measure(cache), watch, Trace(steps, folder, accelerator))
            with together(accelerator):
                if accelerator.is_main_process:
                    write_json(folder / "result.json", result)
        return result


def _whole_result(folder: Path) -> dict[str, Any] | None:
    """result.json, if the journal beside it is whole."""
    result = read_result(folder)
    whole = result is not None and result["journal_events"] <= len(read_journal(folder / JOURNAL))
    return result if whole else None


def _loop(
    trainer: Trainer, folder: Path, measure: Measure, watch: Callable[[Tick], None], trace: Trace
) -> dict[str, Any]:
    total, divergence = trainer.total_steps, None
    accelerator = trainer.accelerator
    journal = Journal(folder / JOURNAL if accelerator.is_main_process else None, trainer.progress.journal_events)
    saved_at = time.perf_counter()
    try:
        while trainer.progress.step < total and divergence is None:
            trace.before(trainer.progress.step + 1)
            divergence = _advance(trainer, journal, measure, watch)
            trace.after(trainer.progress.step)
            due = trainer.progress.step == total or time.perf_counter() - saved_at > CHECKPOINT_SECONDS
            if divergence is None and of_main(accelerator, due):
                _save(trainer, journal, folder)
                saved_at = time.perf_counter()
        result = _result(trainer, measure, divergence)
        if result["divergence"] is not None:
            _tell(trainer, journal, "diverged", divergence=result["divergence"])
        return {**result, "journal_events": journal.num_events}
    except OSError as problem:
        if problem.strerror and not problem.filename:
            problem.filename = str(folder)  # a full disk does not say where
        raise
    finally:
        trace.stop()
        journal.close()


def _advance(trainer: Trainer, journal: Journal, measure: Measure, watch: Callable[[Tick], None]) -> str | None:
    """One step, and what is logged and measured after it; returns what diverged."""
    begin = time.perf_counter()
    batch = trainer.batches.batch(trainer.progress.step)
    seed_step(trainer.accelerator, trainer.run.seed, trainer.progress.step)
    step, total = trainer.progress.step + 1, trainer.total_steps
    logged = step % max(1, total // _LOGGED_STEPS) == 0 or step == total
    change = update(trainer, trainer.task.inputs(batch, step - 1), observe=logged)
    seconds = time.perf_counter() - begin
    _count(trainer, batch, seconds)
    divergence = _not_finite(step, **change.must_be_finite)
    if divergence is None:
        trainer.stability.record(step, change.loss, change.gradient_norm, change.skipped, change.observed)
    if divergence is None and logged:
        _tell(trainer, journal, "train", **change.facts)
        with together(trainer.accelerator):
            watch(Tick(step, total, change.loss, trainer.task.tokens_per_step / seconds, (total - step) * seconds))
    if divergence is None and step in _evaluated_steps(total, trainer.run.evaluation.points):
        with trainer.evaluated():
            score = measure.validation(trainer.bare_model)
        divergence = _not_finite(step, **{trainer.task.metric: score})
        if divergence is None:
            _tell(trainer, journal, "evaluate", score=score)
    return divergence


def _tell(trainer: Trainer, journal: Journal, event: str, **facts: Any) -> None:
    """An event of the present step, to the journal and to the trackers."""
    with together(trainer.accelerator):
        journal.write(event, trainer.progress.step, **_spent(trainer), **facts)
        track(trainer.accelerator, trainer.progress.step, facts)


def _evaluated_steps(total_steps: int, points: int) -> set[int]:
    """`points` steps, evenly spaced, the last one at the end."""
    return {math.ceil(total_steps * point / points) for point in range(1, points + 1)}


def _save(trainer: Trainer, journal: Journal, folder: Path) -> None:
    model, optimizer, scaler = trainer.bare_model, trainer.optimizer.optimizer, trainer.accelerator.scaler
    trainer.progress = replace(
        trainer.progress, journal_events=journal.num_events, stability=trainer.stability.to_json()
    )
    main = trainer.accelerator.is_main_process
    contents = gather(model, optimizer, trainer.average, scaler, keep=main)
    with together(trainer.accelerator):
        if main:
            journal.sync()
            save_checkpoint(folder / "checkpoints", contents, trainer.progress)


def _count(trainer: Trainer, batch: Any, seconds: float) -> None:
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
    tokens = trainer.progress.step * trainer.task.tokens_per_step
    return {
        "tokens": tokens,
        "flops": tokens * trainer.flops_per_token,
        "seconds": trainer.progress.elapsed_seconds,
        "batches_sha256": trainer.progress.batches_sha256,
    }


def _result(trainer: Trainer, measure: Measure, divergence: str | None) -> dict[str, Any]:
    spent, model, step = _spent(trainer), trainer.bare_model, trainer.progress.step
    with trainer.evaluated():
        quality = None if divergence is not None else measure.quality(model)
        state_bytes = decoding_state_bytes(model)
    divergence = divergence or _not_finite(step, **({} if quality is None else _scores(quality)))
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
        "state_bytes": state_bytes,
        "optimizer_state_bytes": optimizer_state_bytes(trainer.optimizer.optimizer),
        "stability": trainer.stability.result(None if divergence is None else step),
        "documents_sha256": measure.documents_sha256,
        "metric": trainer.task.metric,
        **(dict.fromkeys(_QUALITY) if quality is None or divergence is not None else asdict(quality)),
    }


def _scores(quality: Quality) -> dict[str, float]:
    """All scores by what they are called."""
    return {f"{split}_{name}": value for split, found in quality.scores.items() for name, value in found.items()}
