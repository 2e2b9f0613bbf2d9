"""What is live while a run trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from paribus.data.batches import Batches
from paribus.nn.kernels.choice import Implementation
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

from .checkpoint import Progress
from .run import Run


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

    @property
    def bare_model(self) -> ParibusForCausalLM:
        """The model without what the engine wraps around it."""
        return self.accelerator.unwrap_model(self.model)
