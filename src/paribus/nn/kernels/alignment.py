"""Every segment on a row of its own, left-aligned by true position, for kernels that read positions or lags.

Their state is a history: a tensor [B, S, ...] with the inputs of each row's current segment at their true
positions, zero behind the last one. It needs no other record, because `Rows.past` knows how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..segments import Past, Rows


@dataclass(frozen=True)
class Aligned:
    """The tokens of one call and their history, aligned."""

    tokens: Tensor
    """[R, L, ...]: a row for each segment of each batch row, tokens at their true positions, else zero."""
    history: Tensor
    """[B, S, ...]: the current segment of each batch row after this call; the next call's history."""
    places: tuple[Tensor, Tensor] | None
    """Aligned row and position of each of the [B, T] tokens; None: they are where they were."""
    valid: Tensor | None
    """[B, T] bool; None: no padding."""

    def place(self, x: Tensor) -> Tensor:
        """Align what else belongs to the [B, T, ...] tokens of this call, zero elsewhere."""
        if self.places is None:
            return x
        room = x.new_zeros(*self.tokens.shape[:2], *x.shape[2:])
        if self.valid is None:
            return room.index_put(self.places, x)
        return room.index_put((self.places[0][self.valid], self.places[1][self.valid]), x[self.valid])

    def pack(self, y: Tensor) -> Tensor:
        """[R, L, ...] back to [B, T, ...], zero at padding."""
        if self.places is None:
            return y
        y = y[self.places]
        return y if self.valid is None else _mask(y, self.valid)

    def lengths(self) -> Tensor | None:
        """[R]: how many tokens each row holds, at least 1; None: all rows are full. For rows without history."""
        if self.places is None or self.valid is None:
            return None
        return self.places[0][self.valid].bincount(minlength=self.tokens.shape[0]).clamp(min=1)


def align(x: Tensor, rows: Rows, history: Tensor | None) -> Aligned:
    """Align the tokens `x` [B, T, ...] behind their `history`.

    Without padding and boundaries all sizes are known beforehand; otherwise they depend on the data.
    """
    if not rows.plain:
        return _align_segments(x, rows, history)
    if history is None:
        return Aligned(x, x, None, None)
    places = (torch.arange(x.shape[0], device=x.device)[:, None], rows.positions)
    room = x.new_zeros(x.shape[0], x.shape[1], *x.shape[2:])
    tokens = torch.cat([history.to(x.dtype), room], 1).index_put(places, x)
    return Aligned(tokens, tokens, places, None)


def _align_segments(x: Tensor, rows: Rows, history: Tensor | None) -> Aligned:
    assert rows.valid is not None, "segment boundaries come with a mask of real tokens"
    B = x.shape[0]
    after = rows.after()
    before = after.segment * 0 if history is None or rows.past is None else rows.past.segment
    # One key for each (batch row, segment): the past's, those of the tokens, the present one's.
    ids = torch.cat([before[:, None], rows.ids, after.segment[:, None]], 1)
    key = ids + torch.arange(B, device=x.device)[:, None] * (ids.max() + 1)
    keys = key[ids != 0].unique()
    row = torch.searchsorted(keys, key).clamp(max=max(0, len(keys) - 1))
    positions = torch.where(rows.valid, rows.positions, 0)
    length = max(1, int(positions.max()) + 1, 0 if history is None else history.shape[1])
    tokens = x.new_zeros(max(1, len(keys)), length, *x.shape[2:])
    if history is not None:
        past = before != 0
        steps = torch.arange(history.shape[1], device=x.device)
        tokens = tokens.index_put((row[past, :1], steps), history[past].to(x.dtype))
    places = (row[:, 1:-1], positions)
    tokens = tokens.index_put((places[0][rows.valid], places[1][rows.valid]), x[rows.valid])
    kept = tokens[row[:, -1], : int(after.position.max())]
    return Aligned(tokens, _mask(kept, after.segment != 0), places, rows.valid)


def history_of(x: Tensor, ids: Tensor, positions: Tensor, past: Past) -> Tensor:
    """A history out of what another kernel keeps of all tokens so far, in any order.

    Args:
        x: [B, S, ...].
        ids: [B, S] segments, 0 = padding.
        positions: [B, S] true positions.
        past: where the rows stand after these tokens.

    Returns:
        [B, S', ...], those of the current segment at their true positions, zero behind the last one.
    """
    batch, place = ((ids == past.segment[:, None]) & (ids != 0)).nonzero(as_tuple=True)
    room = x.new_zeros(x.shape[0], int(past.position.max()), *x.shape[2:])
    return room.index_put((batch, positions[batch, place]), x[batch, place])


def _mask(x: Tensor, keep: Tensor) -> Tensor:
    return x.masked_fill(~keep.view(keep.shape + (1,) * (x.ndim - keep.ndim)), 0)


def each_segment(
    x: Tensor, rows: Rows, history: Tensor | None, compute: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The plain meaning of alignment, for references: one segment after another.

    Args:
        x: [B, T, ...].
        rows: segments and padding of the tokens.
        history: [B, S, ...] of the segment that goes on; None is no past.
        compute: [n, ...] -> [n, ...], what happens to the inputs of one segment, history included.

    Returns:
        y [B, T, ...], zero at padding, and the history after `x`.
    """
    y, kept = torch.zeros_like(x), []
    for b in range(x.shape[0]):
        inputs = x[b, :0]
        if history is not None and rows.past is not None:
            inputs = history[b, : int(rows.past.position[b])].to(x.dtype)
        for places in _segments_of_row(rows, b):
            begins = rows.starts is not None and bool(rows.starts[b, places[0]])
            inputs = torch.cat([inputs[: 0 if begins else None], x[b, places]])
            y[b, places] = compute(inputs)[-len(places) :]
        kept.append(inputs)
    return y, pad_sequence(kept, batch_first=True)


def _segments_of_row(rows: Rows, b: int) -> list[Tensor]:
    """The places of the tokens of each segment in row `b`, in order."""
    ids = rows.ids[b]
    return [(ids == segment).nonzero()[:, 0] for segment in ids.unique() if segment != 0]
