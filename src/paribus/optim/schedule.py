"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from paribus.nn.settings import nearest


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to the peak, then one of the shapes in `SCHEDULES`.

    Raises:
        ValueError: an unknown name, or a share outside [0, 1].
    """

    name: str = "cosine"
    warmup: float = 0.05
    """Share of the run's steps spent warming up."""
    warmup_tokens: int | None = None
    """Tokens spent warming up, in place of that share; a shorter run ends on the way."""
    final: float = 0.1
    """The last learning rate of cosine, linear and wsd, as a share of the peak."""
    decay: float = 0.2
    """Share of the steps that wsd spends decaying."""

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"schedule: unknown name '{self.name}'; {nearest(self.name, SCHEDULES)}")
        for key in ("warmup", "final", "decay"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"schedule: {key} is {getattr(self, key)}; a share between 0 and 1 is needed")
        if self.warmup_tokens is not None and self.warmup_tokens < 0:
            raise ValueError(f"schedule: warmup_tokens is {self.warmup_tokens}; 0 or more is needed")
        if self.name == "wsd" and self.warmup_tokens is None and self.warmup + self.decay > 1:
            raise ValueError(f"schedule: warmup {self.warmup} and decay {self.decay} are more than the whole run")

    def factor(self, step: int, total_steps: int, tokens_per_step: int) -> float:
        """The learning rate of step 0 ≤ `step` < `total_steps`, as a share of the peak."""
        if self.warmup_tokens is None:
            warmup_steps = _steps(self.warmup, total_steps)
        else:
            warmup_steps = math.ceil(self.warmup_tokens / tokens_per_step)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return SCHEDULES[self.name](self, step, warmup_steps, total_steps)


def constant(schedule: Schedule, step: int, warmup_steps: int, total_steps: int) -> float:
    """The peak."""
    return 1.0


def cosine(schedule: Schedule, step: int, warmup_steps: int, total_steps: int) -> float:
    """From the peak to `final` · peak along half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    progress = _progress(step, warmup_steps, total_steps)
    return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(schedule: Schedule, step: int, warmup_steps: int, total_steps: int) -> float:
    """From the peak to `final` · peak along a straight line."""
    return 1 - (1 - schedule.final) * _progress(step, warmup_steps, total_steps)


def wsd(schedule: Schedule, step: int, warmup_steps: int, total_steps: int) -> float:
    """The peak, and in the last `decay` of the run linearly to `final` · peak (Hu et al. 2024, arXiv:2404.06395)."""
    decay_steps = _steps(schedule.decay, total_steps)
    remaining = total_steps - 1 - step
    return 1.0 if remaining >= decay_steps else schedule.final + (1 - schedule.final) * remaining / decay_steps


def inverse_sqrt(schedule: Schedule, step: int, warmup_steps: int, total_steps: int) -> float:
    """Peak · √(warm-up steps / steps), whatever the run's length (Vaswani et al. 2017, arXiv:1706.03762, 5.3)."""
    return math.sqrt(max(1, warmup_steps) / (step + 1))


SCHEDULES: dict[str, Callable[[Schedule, int, int, int], float]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
    "inverse_sqrt": inverse_sqrt,
}


def _progress(step: int, warmup_steps: int, total_steps: int) -> float:
    """From above 0 at the first step after the warm-up to 1 at the last of the run."""
    return (step + 1 - warmup_steps) / max(1, total_steps - warmup_steps)


def _steps(share: float, total_steps: int) -> int:
    """A share of the steps, rounded up; 0.07 · 100 is 7, though floats make it a little more."""
    return math.ceil(round(share * total_steps, 6))
