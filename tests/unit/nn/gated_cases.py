"""What the tests of recurrence and delta share: inputs for every kind of decay, and one way to call both kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paribus.nn.kernels.delta import delta
from paribus.nn.kernels.recurrence import recurrence
from paribus.nn.segments import Rows, resolve
from tests.unit.nn.kernel_cases import random_segments

B, H, K, V = 3, 2, 4, 5
KINDS = ["none", "constant", "scalar", "channel"]
LENGTHS = [1, 7, 63, 65, 200]
Kernel = Callable[..., tuple[Tensor, Any]]


@dataclass
class Case:
    """Inputs of one kernel: those with tokens on dimension 1, and the constant decay and initial state."""

    kernel: str
    tokens: list[Tensor]
    constant: Tensor | None
    state: Tensor

    @property
    def others(self) -> list[Tensor]:
        """What has no tokens."""
        return [self.state] if self.constant is None else [self.constant, self.state]

    def cast(self, dtype: torch.dtype) -> Case:
        """The same numbers as new leaves; states and decays stay at least float32."""
        wide = torch.promote_types(dtype, torch.float32)
        basic = 3 if self.kernel == "recurrence" else 4
        tokens = [t.detach().to(dtype if i < basic else wide) for i, t in enumerate(self.tokens)]
        constant = None if self.constant is None else self.constant.detach().to(wide).requires_grad_()
        state = self.state.detach().to(wide).requires_grad_()
        return Case(self.kernel, [t.requires_grad_() for t in tokens], constant, state)

    def run(self, **options: Any) -> Kernel:
        """run(*tokens, rows=, state=): the kernel with this case's constant decay."""
        kernel = recurrence if self.kernel == "recurrence" else delta
        basic = 3 if self.kernel == "recurrence" else 4

        def call(*tokens: Tensor, rows: Rows, state: Any) -> tuple[Tensor, Any]:
            log_decay = tokens[basic] if len(tokens) > basic else self.constant
            return kernel(*tokens[:basic], log_decay, rows=rows, state=state, **options)

        return call

    def run_from_state(self, **options: Any) -> Kernel:
        """Likewise, beginning with this case's state wherever none is given; two-directional there is none."""
        run = self.run(**options)

        def call(*tokens: Tensor, rows: Rows, state: Any) -> tuple[Tensor, Any]:
            if options["causal"] and state is None:
                state = self.state
            return run(*tokens, rows=rows, state=state)

        return call


def make_case(kernel: str, kind: str, length: int, strength: float = 1.0) -> Case:
    """A random case in float64; log-decays lie between -strength and 0."""
    normal = partial(torch.randn, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    q, k, v = normal(B, length, H, K), normal(B, length, H, K), normal(B, length, H, V)
    tokens = [q, k, v] if kernel == "recurrence" else [q, F.normalize(k, dim=-1), v]
    if kernel == "delta":
        tokens.append(normal(B, length, H).sigmoid())
    shapes = {"scalar": (B, length, H), "channel": (B, length, H, K)}
    if kind in shapes:
        tokens.append(-strength * normal(shapes[kind]).sigmoid())
    constant = -strength * normal(H).sigmoid() if kind == "constant" else None
    return Case(kernel, tokens, constant, normal(B, H, K, V)).cast(torch.float64)


def segments_of(layout: str, length: int) -> Tensor | None:
    """None for "plain"; else random segments with padding, those of the first half row going on from a state."""
    return random_segments(B, length) if layout == "segments" else None


def rows_of(x: Tensor) -> Rows:
    """Rows without padding or boundaries."""
    return resolve(x, None, None)
