"""Who interacts with whom: segments of packed or padded rows, resolved against the past.

``segments`` [B, T] holds integers; 0 is padding (left, right or inside a row), equal non-zero ids belong together and
ids never decrease along a row. Padding is invisible: a row with padding anywhere gives the answers of the row without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Past(NamedTuple):
    """Where each row stood when its state was kept."""

    segment: Tensor
    """[B] int64: the last non-zero segment id; 0 before the first token."""
    position: Tensor
    """[B] int64: how many tokens of that segment have been seen."""


@dataclass(frozen=True)
class Rows:
    """The tokens of one forward as the kernels need to know them."""

    ids: Tensor
    """[B, T] int64 segment ids, 0 = padding."""
    positions: Tensor
    """[B, T] int64: the true position of a token in its segment, padding not counted (any value at padding)."""
    valid: Tensor | None
    """[B, T] bool; None when every token is real (the fast case)."""
    starts: Tensor | None
    """[B, T] bool: this token begins a segment, so whatever came before is forgotten; None when no token does."""
    past: Past | None
    """Where the rows stood before these tokens; None at the beginning."""

    @property
    def plain(self) -> bool:
        """Whether neither padding nor segment boundaries occur: nothing needs to be masked."""
        return self.valid is None and self.starts is None

    def repeated(self, n: int) -> Rows:
        """The same rows with n steps in each token's place, for kernels that take several steps a token."""
        ids, positions = (x.repeat_interleave(n, 1) for x in (self.ids, self.positions))
        valid = None if self.valid is None else self.valid.repeat_interleave(n, 1)
        if self.starts is None:
            return Rows(ids, positions, valid, None, self.past)
        starts = torch.nn.functional.pad(self.starts[..., None], (0, n - 1)).flatten(1)
        return Rows(ids, positions, valid, starts, self.past)

    def after(self) -> Past:
        """Where the rows stand after these tokens."""
        if self.valid is None:
            return Past(self.ids[:, -1], self.positions[:, -1] + 1)
        before = self.past or Past(*torch.zeros(2, self.ids.shape[0], dtype=torch.long, device=self.ids.device))
        last = torch.maximum(self.ids.amax(1), before.segment)
        seen = ((self.ids == last[:, None]) & self.valid).sum(1)
        return Past(last, seen + before.position * (last == before.segment))


def resolve(x: Tensor, segments: Tensor | None, past: Past | None) -> Rows:
    """Resolve the segments of `x` [B, T, ...]; None means that every token continues its row's current segment.

    Raises:
        ValueError: `segments` has another shape than the tokens.
    """
    B, T = x.shape[:2]
    steps = torch.arange(T, device=x.device)
    if segments is None:
        if past is None:
            return Rows(torch.ones(B, T, dtype=torch.long, device=x.device), steps.expand(B, T), None, None, None)
        # A row that has seen padding only is still before its first segment: it begins segment 1 here.
        ids = past.segment.clamp(min=1)[:, None].expand(B, T)
        return Rows(ids, past.position[:, None] + steps, None, None, past)
    if segments.shape != (B, T):
        raise ValueError(f"segments have shape {tuple(segments.shape)}; the tokens need {(B, T)}")
    ids = segments.long()
    valid = ids != 0
    first = past.segment if past is not None else ids.new_zeros(B)
    running = torch.cat([first[:, None], ids], 1).cummax(1).values  # B 1+T
    starts = valid & (ids != running[:, :-1])
    count = valid.cumsum(1)  # B T, tokens up to and including this one
    since = torch.where(starts, count - 1, -1).cummax(1).values  # count when the present segment began, -1: in the past
    seen = past.position[:, None] if past is not None else 0
    positions = torch.where(since >= 0, count - 1 - since, count - 1 + seen)
    return Rows(ids, positions, valid, starts, past)
