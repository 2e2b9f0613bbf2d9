"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to the peak, then one of three shapes.

    cosine:   from the peak to `final` · peak along half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983)
    constant: the peak
    wsd:      the peak, and in the last `decay` of the run linearly to `final` · peak (Hu et al. 2024,
              arXiv:2404.06395)
    """

    name: Literal["cosine", "constant", "wsd"] = "cosine"
    warmup: float = 0.05
    """Share of the run's steps spent warming up."""
    final: float = 0.1
    """The last learning rate as a share of the peak."""
    decay: float = 0.2
    """Share of the steps that wsd spends decaying."""

    def __post_init__(self) -> None:
        for key in ("warmup", "final", "decay"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"schedule: {key} is {getattr(self, key)}; a share between 0 and 1 is needed")
        if self.name == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"schedule: warmup {self.warmup} and decay {self.decay} are more than the whole run")

    def factor(self, step: int, total_steps: int, tokens_per_step: int) -> float:
        """The learning rate of step 0 ≤ `step` < `total_steps`, as a share of the peak."""
        warmup_steps = _steps(self.warmup, total_steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if self.name == "constant":
            return 1.0
        if self.name == "cosine":
            progress = (step + 1 - warmup_steps) / max(1, total_steps - warmup_steps)
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        decay_steps = _steps(self.decay, total_steps)
        remaining = total_steps - 1 - step
        return 1.0 if remaining >= decay_steps else self.final + (1 - self.final) * remaining / decay_steps


def _steps(share: float, total_steps: int) -> int:
    """A share of the steps, rounded up; 0.07 · 100 is 7, though floats make it a little more."""
    return math.ceil(round(share * total_steps, 6))
