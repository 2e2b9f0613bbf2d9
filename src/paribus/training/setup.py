"""Setting a run up: its engine, its model, its optimizer, and where it stands."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from paribus.data.batches import Batches
from paribus.evaluation.cost import reset_peak_memory, training_flops_per_token
from paribus.nn.kernels.choice import Implementation
from paribus.optim.optimizer import make_optimizer

from .average import Average
from .checkpoint import load_checkpoint
from .files import read_json, write_json
from .journal import JOURNAL, read_journal
from .model import build_model
from .ranks import check_equal, of_main, together
from .run import Run
from .stability import Observer, Stability
from .step import forward_and_backward
from .trainer import Trainer

_CALIBRATION_STEPS = 8


def make_accelerator(run: Run, trackers: Sequence[str], folder: Path) -> Accelerator:
    """The engine of this process for `run`; what `trackers` keep on this machine lies in the run's `folder`.

    Raises:
        ValueError: the machine lacks the device.
    """
    # One process trains many runs, each with a device and precision of its own; the state is the process's.
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = "no" if run.precision == "fp32" else run.precision
    accelerator = Accelerator(
        cpu=run.device == "cpu",
        mixed_precision=precision,
        log_with=list(trackers) or None,
        project_dir=folder / "trackers",
    )
    if accelerator.device.type != run.device:
        raise ValueError(f"run: device is '{run.device}'; this machine offers '{accelerator.device.type}'")
    return accelerator


def find_kernels(run: Run) -> Implementation | None:
    """Who computes the gated kernels; None is torch.

    Raises:
        ValueError: they are not installed.
    """
    if run.kernels == "torch":
        return None
    from paribus.nn.kernels.fla import implementation  # which takes seconds to import

    return implementation()


def set_up(
    run: Run, accelerator: Accelerator, kernels: Implementation | None, batches: Batches, folder: Path
) -> Trainer:
    """Everything live that training `run` needs, continued from the newest whole checkpoint in `folder`."""
    set_seed(run.seed)
    reset_peak_memory()
    model = build_model(run)
    if run.gradient_checkpointing:
        model.activation_checkpointing_enable()
    model.train().to(accelerator.device)
    flops_per_token = training_flops_per_token(model, run.data.sequence_length)
    optimizer = make_optimizer(run.optimizer, model)
    average = Average(model, run.ema_decay) if run.ema_decay else None
    events = len(read_journal(folder / JOURNAL))
    progress = load_checkpoint(folder / "checkpoints", model, optimizer, events, average, accelerator.scaler)
    check_equal(accelerator, progress.step, "checkpoints")
    observer = Observer(model)  # its hooks come before the engine compiles the model
    # The optimizer's state is where it belongs, and moving it would round what is not of its parameter's type.
    model, optimizer = accelerator.prepare(model, optimizer, device_placement=[True, False])
    trainer = Trainer(
        run,
        accelerator,
        batches,
        model,
        optimizer,
        kernels,
        observer,
        average,
        flops_per_token=flops_per_token,
        progress=progress,
        stability=Stability(**progress.stability),
    )
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
    recorded = of_main(trainer.accelerator, read_json(folder / "budget.json"))
    if recorded is None:
        steps = max(1, round(budget.seconds / _seconds_per_step(trainer)))
        recorded = of_main(trainer.accelerator, {"steps": steps})
        with together(trainer.accelerator):
            if trainer.accelerator.is_main_process:
                write_json(folder / "budget.json", recorded)
    return int(recorded["steps"])


def _seconds_per_step(trainer: Trainer) -> float:
    """Median time of a forward and backward pass, on weights and a generator that stay as they were."""
    times = []
    with torch.random.fork_rng():
        for step in range(_CALIBRATION_STEPS):
            begin = time.perf_counter()
            forward_and_backward(trainer, trainer.batches.batch(step))
            times.append(time.perf_counter() - begin)
            trainer.optimizer.zero_grad()
    return sorted(times)[len(times) // 2]
