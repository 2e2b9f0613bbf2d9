"""Setting a run up: its engine, its model, its optimizer, and where it stands."""

from __future__ import annotations

import os
import shutil
import sysconfig
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn

from paribus.evaluation.cost import reset_peak_memory, training_flops
from paribus.nn.kernels.choice import Implementation
from paribus.optim.optimizer import make_optimizer

from .average import Average, averages_itself
from .checkpoint import load_checkpoint
from .files import read_json, write_json
from .journal import JOURNAL, read_journal
from .model import build_model
from .ranks import check_equal, expect_gradients, of_main, together
from .run import Run
from .shard import check_shard, shard
from .stability import Observer, Stability
from .step import forward_and_backward
from .task import Batches, Task
from .trainer import Trainer

_CALIBRATION_STEPS = 8
_COMPILER = (2, 13)
"""The oldest version of torch whose compiled gradients were compared with plain ones."""


def check_engine(run: Run) -> None:
    """Refuse what the engine, the compiler, the averaging of weights or a split model cannot do.

    Raises:
        ValueError: fp16 on the CPU, compilation without a compiler, two averages of the weights at once, or what
            `check_shard` refuses.
    """
    if run.precision == "fp16" and run.device == "cpu":
        raise ValueError("run: precision is 'fp16', which needs device 'cuda' or 'mps'; device 'cpu' allows 'bf16'")
    if run.compile:
        _check_compiler(run.device)
    if run.parallel == "shard":
        check_shard(run)
    if run.ema_decay and averages_itself(make_optimizer(run.optimizer, nn.Linear(2, 2))):
        raise ValueError(
            f"run: ema_decay is {run.ema_decay}, and optimizer '{run.optimizer.name}' averages the weights by itself; "
            "ema_decay 0 is needed"
        )


def _check_compiler(device: str) -> None:
    """Refuse to compile where the tools that torch.compile calls are missing, or its own are known to be wrong."""
    if (
        tuple(map(int, torch.__version__.split(".")[:2])) < _COMPILER
    ):  # 2.11 lost gradients of functions that write their result in place
        needed = ".".join(map(str, _COMPILER))
        raise ValueError(f"run: compile is true, which needs torch {needed} or newer; {torch.__version__} is installed")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        raise ValueError(f"run: compile is true, which needs Python's header files; '{header}' is not found")
    variable, usual = ("CC", ("gcc", "clang")) if device == "cuda" else ("CXX", ("g++", "clang++"))
    compilers = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(map(shutil.which, compilers)):
        names = " or ".join(f"'{name}'" for name in compilers)
        raise ValueError(
            f"run: compile is true, which needs a compiler; {names} is not found ({variable} names another)"
        )
    if device == "cuda" and find_spec("triton") is None:
        raise ValueError("run: compile is true, which on device 'cuda' needs the package triton; it is not installed")


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
        dynamo_backend="no",  # whatever a launcher says: what is compiled is the run's choice
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
    task: Task, accelerator: Accelerator, kernels: Implementation | None, batches: Batches, folder: Path
) -> Trainer:
    """Everything live that training the run of `task` needs, continued from the newest checkpoint in `folder`."""
    run = task.run
    set_seed(run.seed)
    reset_peak_memory()
    model = build_model(run)
    if run.gradient_checkpointing:
        model.model.gradient_checkpointing = True  # the method for it has another name in each version of transformers
    model.train()
    sharded = run.parallel == "shard" and accelerator.num_processes > 1  # one process has the only share
    if sharded:
        shard(model, accelerator.device)
    else:
        model.to(accelerator.device)
        expect_gradients(accelerator, model, task)
    flops_per_token = training_flops(model, task.example(), task.arguments) / task.sequence_length
    optimizer = make_optimizer(run.optimizer, model)
    average = Average(model, run.ema_decay) if run.ema_decay else None
    events = len(read_journal(folder / JOURNAL))
    progress = load_checkpoint(folder / "checkpoints", model, optimizer, events, average, accelerator.scaler)
    check_equal(accelerator, progress.step, "checkpoints")
    observer = Observer(model)
    if run.compile:
        # Not the loss, which is cut into pieces that fit already. Hooks that came later would not be seen.
        model.model.compile(dynamic=False)
    # The optimizer's state is where it belongs, and moving it would round what is not of its parameter's type.
    optimizer = accelerator.prepare(optimizer, device_placement=[False])
    # Evaluation mode is without DistributedDataParallel; precision is the same.
    model = accelerator.prepare_model(model, evaluation_mode=sharded)
    trainer = Trainer(
        task,
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
    budget, tokens = trainer.run.budget, trainer.task.tokens_per_step
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
            forward_and_backward(trainer, trainer.task.inputs(trainer.batches.batch(step), step))
            if trainer.accelerator.device.type != "cpu":
                torch.accelerator.synchronize()  # it was only told what to do
            times.append(time.perf_counter() - begin)
            trainer.optimizer.zero_grad()
    return sorted(times)[len(times) // 2]
