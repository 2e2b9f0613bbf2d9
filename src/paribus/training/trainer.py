"""What is live while a run trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from paribus.data.batches import Batches
from paribus.nn.kernels.choice import Implementation
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

from .average import Average, evaluated_weights
from .checkpoint import Progress
from .run import Run
from .stability import Observer, Stability


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
    observer: Observer
    average: Average | None = None
    """The moving average of the weights, if the run keeps one."""
    total_steps: int = 0
    flops_per_token: float = 0.0
    progress: Progress = field(default_factory=Progress)
    stability: Stability = field(default_factory=Stability)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one batch."""
        return self.run.data.batch_size * self.run.data.sequence_length

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Have the model as it is measured: with the weights that are published, and not compiled."""
        eager = torch.compiler.set_stance("force_eager") if self.run.compile else nullcontext()
        with eager, evaluated_weights(self.bare_model, self.optimizer.optimizer, self.average):
            yield

    @property
    def bare_model(self) -> ParibusForCausalLM:
        """The model without what the engine wraps around it."""
        return self.accelerator.unwrap_model(self.model)
