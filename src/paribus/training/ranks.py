"""Several processes that train one run: one of them writes, all fail together, and each draws its own noise.

A *rank* is a process that a launcher started (``accelerate launch``, ``torchrun``); rank 0 is the main one. Every rank
computes the same numbers of the whole run (loss, gradient norm, quality); only the main one touches the folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from torch import nn

from .folder import locked
from .run import Run
from .task import Task

Value = TypeVar("Value")
_DATA_PARALLEL = {"NO", "MULTI_CPU", "MULTI_GPU"}


class FailedElsewhere(RuntimeError):
    """Another rank failed; it says why, this one need not."""


@contextmanager
def alike() -> Iterator[None]:
    """What comes out the same on every rank, before they know each other: the first of a machine says what is wrong.

    Raises:
        FailedElsewhere: this rank is not the first of its machine, and failed as the first did.
    """
    try:
        yield
    except Exception as problem:
        if int(os.environ.get("LOCAL_RANK", "0")) > 0:
            raise FailedElsewhere(str(problem)) from problem
        raise


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """What may fail on one rank only, and then fails on all; nobody leaves before all are through.

    The ranks must not exchange anything inside.

    Raises:
        FailedElsewhere: a rank failed, and this is not the first that did.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as caught:
        problem = caught
    failed = [problem is not None]
    if accelerator.num_processes > 1:
        failed = gather_object(failed)
    if not any(failed):
        return
    if problem is not None and failed.index(True) == accelerator.process_index:
        raise problem
    raise FailedElsewhere(f"process {failed.index(True)} of this run failed") from problem


@contextmanager
def locked_by_one(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """The folder is held by the main rank; see `locked`."""
    with ExitStack() as stack:
        with together(accelerator):
            if accelerator.is_main_process:
                stack.enter_context(locked(folder))
        yield


def of_main(accelerator: Accelerator, value: Value) -> Value:
    """The value that the main rank has, on all ranks."""
    if accelerator.num_processes == 1:
        return value
    told: list[Any] = [value]
    return broadcast_object_list(told)[0]


def check_equal(accelerator: Accelerator, value: Any, what: str) -> None:
    """Refuse to go on when the ranks stand at different places.

    Raises:
        ValueError: `value` is not the same on all ranks.
    """
    found = gather_object([value]) if accelerator.num_processes > 1 else [value]
    with together(accelerator):
        if accelerator.is_main_process and any(other != found[0] for other in found):
            raise ValueError(f"the processes of this run see different {what}: {found}; they need one shared folder")


def check_launch(accelerator: Accelerator, run: Run) -> None:
    """Refuse a launcher that splits the model, or ranks that cannot share a batch out evenly.

    Raises:
        ValueError: launched with anything but data parallelism; or some rank, or some piece of its share, would get
            fewer sequences than others.
    """
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    kind = "FSDP" if sharded else accelerator.distributed_type.value
    if kind not in _DATA_PARALLEL:
        raise ValueError(
            f"run: launched with {kind}, which splits the model; only data parallelism is offered "
            "(distributed_type: MULTI_GPU), in which the run's parallel 'shard' splits the model"
        )
    world = accelerator.num_processes
    if run.data.batch_size % (world * run.accumulation):
        needed = f"a multiple of {world} processes x accumulation {run.accumulation} is needed"
        raise ValueError(f"run: batch_size is {run.data.batch_size}; {needed}")


def expect_gradients(accelerator: Accelerator, model: nn.Module, task: Task) -> None:
    """Tell the engine when some of `model`'s parameters may go without a gradient, so that no rank waits for it.

    Such are experts that no token chose, and what a layer learns from a layer before it that is not there. Looking for
    them in each step costs time, so it is done only where one row finds any.
    """
    if accelerator.num_processes == 1:
        return
    example = {name: x.to(accelerator.device) for name, x in task.example().items()}
    model(**example, **task.arguments).loss.backward()
    idle = any(parameter.grad is None for parameter in model.parameters())
    model.zero_grad(set_to_none=True)
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=idle)


def seed_step(accelerator: Accelerator, seed: int, step: int) -> None:
    """Give each of several ranks noise (dropout) of its own, decided by the step, so that resuming repeats it."""
    if accelerator.num_processes > 1:
        key = hashlib.sha256(f"{seed} rank {accelerator.process_index} step {step}".encode()).digest()
        torch.manual_seed(int.from_bytes(key[:8], "little") >> 1)


def is_main() -> bool:
    """Whether this process is the main one, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def leave() -> None:
    """End the connections between the ranks of this process, if it is one of several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        PartialState().destroy_process_group()
