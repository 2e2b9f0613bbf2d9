"""What is live while a run trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from paribus.nn.kernels.choice import Implementation
from paribus.nn.task import TaskModel

from .average import Average, evaluated_weights
from .checkpoint import Progress
from .run import Run
from .stability import Observer, Stability
from .task import Batches, Task


@dataclass
class Trainer:
    """The live objects of one run."""

    task: Task
    accelerator: Accelerator
    batches: Batches
    model: Any
    optimizer: Any
    kernels: Implementation | None
    """Who computes the gated kernels in training steps; None is torch."""
    observer: Observer
    average: Average | None = None
    """The moving average of the weights, if the run keeps one."""
    total_steps: int = 0
    flops_per_token: float = 0.0
    progress: Progress = field(default_factory=Progress)
    stability: Stability = field(default_factory=Stability)

    @property
    def run(self) -> Run:
        """What is trained."""
        return self.task.run

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Have the model as it is measured: with the weights that are published, and not compiled."""
        eager = torch.compiler.set_stance("force_eager") if self.run.compile else nullcontext()
        with eager, evaluated_weights(self.bare_model, self.optimizer.optimizer, self.average):
            yield

    @property
    def bare_model(self) -> TaskModel:
        """The model without what the engine wraps around it."""
        return self.accelerator.unwrap_model(self.model)
