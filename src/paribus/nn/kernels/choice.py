"""Which implementation computes the gated kernels: this library's own, or one that a run has chosen.

Nothing chooses by itself. Whoever trains writes ``with using(implementation): ...``, and inside that block `recurrence`
and `delta` hand their chunked form to it; outside, and in every published checkpoint, torch computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Implementation:
    """Both gated kernels, with the arguments of this library's own but `algorithm`."""

    name: str
    recurrence: Callable[..., tuple[Tensor, Tensor | None]]
    delta: Callable[..., tuple[Tensor, Tensor | None]]


_in_use: Implementation | None = None


@contextmanager
def using(implementation: Implementation | None) -> Iterator[None]:
    """Compute with `implementation` inside the block, in the whole process; None is this library's own.

    It does not belong to a thread, because the backward pass computes checkpointed blocks again in threads of its own.
    """
    global _in_use
    before, _in_use = _in_use, implementation
    try:
        yield
    finally:
        _in_use = before


def in_use() -> Implementation | None:
    """What a block around this call has chosen; None is this library's own."""
    return _in_use
