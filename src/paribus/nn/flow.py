"""From noise to images along a velocity: the solvers of image generation, with classifier-free guidance.

    dx/dt = u(x, t)      x(0) = ε, noise      x(1) = an image
    u = v(x, t, any class) + w (v(x, t, class) - v(x, t, any class))

w is the guidance (Ho and Salimans 2022, arXiv:2207.12598, equation 6, where w is one less): 1 follows the class as it
was learned, more exaggerates it, 0 ignores it. The flow is that of Lipman et al. 2022, arXiv:2210.02747.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SOLVERS = ("euler", "heun")
"""euler: x + h u, of order 1; heun: by the mean velocity of both ends of a step, of order 2, at twice the cost."""


@torch.no_grad()
def sample_flow(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    noise: Tensor,
    classes: Tensor,
    no_class: int,
    *,
    steps: int,
    solver: str,
    guidance: float,
) -> Tensor:
    """The images that `noise` flows to in `steps` equal steps of time.

    Args:
        velocity: of images [B, channels, size, size], times [B] from 0 to 1 and classes [B].
        noise: [B, channels, size, size], standard normal.
        classes: [B].
        no_class: the number that says: any class.
        solver: one of `SOLVERS`.
        guidance: with 0 and 1 each velocity is one call on B images, else on 2B.

    Returns:
        As `noise`; what was learned from pixels from -1 to 1 may end a little outside.

    Raises:
        ValueError: a setting that `check_solver` refuses.
    """
    check_solver(steps, solver, guidance)
    follow = _guided(velocity, classes, no_class, guidance)
    x, step = noise, 1 / steps
    for number in range(steps):
        before = follow(x, number / steps)
        ahead = x + step * before
        x = ahead if solver == "euler" else x + step / 2 * (before + follow(ahead, (number + 1) / steps))
    return x


def check_solver(steps: int, solver: str, guidance: float) -> None:
    """Refuse what `sample_flow` cannot do.

    Raises:
        ValueError: no step, an unknown solver, a negative guidance.
    """
    if steps < 1:
        raise ValueError(f"sampling: steps is {steps}; at least 1 is needed")
    if solver not in SOLVERS:
        raise ValueError(f"sampling: solver is {solver!r}; allowed: {', '.join(map(repr, SOLVERS))}")
    if not 0 <= guidance < math.inf:
        raise ValueError(f"sampling: guidance is {guidance}; a number that is not negative is needed")


def _guided(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor], classes: Tensor, no_class: int, guidance: float
) -> Callable[[Tensor, float], Tensor]:
    """The velocity u of x at one time."""
    anything = torch.full_like(classes, no_class)

    def at(x: Tensor, time: float) -> Tensor:
        times = torch.full((len(x),), time, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        if guidance in (0, 1):
            return velocity(x, times, classes if guidance else anything)
        both = velocity(torch.cat([x, x]), torch.cat([times, times]), torch.cat([classes, anything]))
        of_class, of_any = both.chunk(2)
        return of_any + guidance * (of_class - of_any)

    return at
