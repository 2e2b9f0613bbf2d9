"""What the tests of recurrence and delta share: inputs for every form and kind of decay, one way to call."""

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
RECURRENCES = ["recurrence", "value", "bonus"]
"""Read on the key side, on the value side, and with a bonus for the token itself."""
DELTAS = ["delta", "erase", "rank_one"]
"""The delta rule; with everything beside it; and a decay plus an outer product, both read before the decay."""
Kernel = Callable[..., tuple[Tensor, Any]]


def _value(*arguments: Any, **options: Any) -> tuple[Tensor, Any]:
    return recurrence(*arguments, readout="value", **options)


def _erase(
    q: Tensor, k: Tensor, v: Tensor, strength: Tensor, r: Tensor, k2: Tensor, v2: Tensor, *rest: Any, **options: Any
) -> tuple[Tensor, Any]:
    return delta(q, k, v, strength, *rest, erase=r, write=(k2, v2), **options)


def _rank_one(
    q: Tensor, k: Tensor, strength: Tensor, r: Tensor, k2: Tensor, v2: Tensor, *rest: Any, **options: Any
) -> tuple[Tensor, Any]:
    return delta(q, k, None, strength, *rest, erase=r, erase_undecayed=True, write=(k2, v2), **options)


KERNELS: dict[str, tuple[Kernel, str]] = {
    "recurrence": (recurrence, "qkv"),
    "value": (_value, "vkv"),
    "bonus": (recurrence, "qkv"),
    "delta": (delta, "qnvs"),
    "erase": (_erase, "qnvsnkv"),
    "rank_one": (_rank_one, "qnsnkv"),
}
"""Each form, and what it takes: q or k of width K, v of width V, n a key of length one, s a strength."""


@dataclass
class Case:
    """Inputs of one kernel: those with tokens on dimension 1, and the constant decay, the bonus and the first state."""

    kernel: str
    tokens: list[Tensor]
    constant: Tensor | None
    bonus: Tensor | None
    state: Tensor

    @property
    def others(self) -> list[Tensor]:
        """What has no tokens."""
        return [x for x in (self.constant, self.bonus, self.state) if x is not None]

    @property
    def basic(self) -> int:
        """The number of tokens' inputs but the decay."""
        return len(KERNELS[self.kernel][1])

    def cast(self, dtype: torch.dtype) -> Case:
        """The same numbers as new leaves; states, bonus and decays stay at least float32."""
        wide = torch.promote_types(dtype, torch.float32)
        tokens = [t.detach().to(dtype if i < self.basic else wide) for i, t in enumerate(self.tokens)]
        others = (None if x is None else x.detach().to(wide) for x in (self.constant, self.bonus, self.state))
        constant, bonus, state = (None if x is None else x.requires_grad_() for x in others)
        assert state is not None
        return Case(self.kernel, [t.requires_grad_() for t in tokens], constant, bonus, state)

    def run(self, **options: Any) -> Kernel:
        """run(*tokens, rows=, state=): the kernel with this case's constant decay."""
        kernel = KERNELS[self.kernel][0]
        if self.bonus is not None:
            kernel = partial(kernel, bonus=self.bonus)

        def call(*tokens: Tensor, rows: Rows, state: Any) -> tuple[Tensor, Any]:
            log_decay = tokens[self.basic] if len(tokens) > self.basic else self.constant
            return kernel(*tokens[: self.basic], log_decay, rows=rows, state=state, **options)

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
    make: dict[str, Callable[[], Tensor]] = {
        "q": lambda: normal(B, length, H, K),
        "k": lambda: normal(B, length, H, K),
        "n": lambda: F.normalize(normal(B, length, H, K), dim=-1),
        "v": lambda: normal(B, length, H, V),
        "s": lambda: normal(B, length, H).sigmoid(),
    }
    tokens = [make[letter]() for letter in KERNELS[kernel][1]]
    shapes = {"scalar": (B, length, H), "channel": (B, length, H, K)}
    if kind in shapes:
        tokens.append(-strength * normal(shapes[kind]).sigmoid())
    constant = -strength * normal(H).sigmoid() if kind == "constant" else None
    bonus = normal(H, K) if kernel == "bonus" else None
    return Case(kernel, tokens, constant, bonus, normal(B, H, K, V)).cast(torch.float64)


def segments_of(layout: str, length: int) -> Tensor | None:
    """None for "plain"; else random segments with padding, those of the first half row going on from a state."""
    return random_segments(B, length) if layout == "segments" else None


def rows_of(x: Tensor) -> Rows:
    """Rows without padding or boundaries."""
    return resolve(x, None, None)
