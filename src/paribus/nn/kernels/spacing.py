"""Tokens with room around them, so that a convolution of a few taps reads neither padding nor another segment.

Each row holds its real tokens in order, what its state kept in front of them, and zeros between segments and at the
end, as many as the taps reach. Convolved as if it were one sequence, every token then meets its own segment only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..segments import Rows


@dataclass(frozen=True)
class Spaced:
    """The tokens of one call with room around them."""

    tokens: Tensor
    """[B, L, E]; in front of each row lie `before` tokens of the past, or zeros."""
    before: int
    """How far back the taps reach."""
    places: Tensor | None
    """[N]: where each real token lies in the flat [B·L]; None: token t of each row lies at `before` + t."""
    sources: Tensor | None
    """[N]: where each real token was in the flat [B·T]; None: all T tokens of every row are real."""
    length: int
    """T."""
    ends: Tensor | None
    """[B]: the last used place of each row; None: its last but the room behind it."""

    def pick(self, y: Tensor) -> Tensor:
        """[B, L, F], one vector for each place, to [B, T, F], zero at padding."""
        B, T = y.shape[0], self.length
        if self.places is None:
            return y[:, self.before : self.before + T]
        picked = take(y.flatten(0, 1), self.places)
        if self.sources is not None:
            picked = picked.new_zeros(B * T, y.shape[2]).index_copy(0, self.sources, picked)
        return picked.view(B, T, -1)

    def last(self) -> Tensor:
        """[B, before, E]: the last tokens of the current segment, zero where there were fewer."""
        B, L, E = self.tokens.shape
        if self.ends is None:
            # A copy, so that a kept state does not keep the whole sequence alive.
            return self.tokens[:, self.length : self.length + self.before].clone()
        row_ends = self.ends + 1 + L * torch.arange(B, device=self.ends.device)
        places = row_ends[:, None] - torch.arange(self.before, 0, -1, device=self.ends.device)
        return take(self.tokens.flatten(0, 1), places.flatten()).view(B, self.before, E)


def space(x: Tensor, rows: Rows, state: Tensor | None, before: int, after: int) -> Spaced:
    """Make room around the tokens `x` for taps that reach `before` tokens back and `after` ahead.

    Without padding and boundaries all sizes are known beforehand; otherwise they depend on the data.

    Args:
        x: [B, T, E].
        rows: segments and padding of the tokens.
        state: [B, before, E], what `Spaced.last` gave; None is no past.
        before: at least `after`.
        after: 0 if a state is kept.
    """
    B, T, E = x.shape
    lead = x.new_zeros(B, before, E) if state is None else state.to(x.dtype)
    if rows.valid is None or rows.starts is None:
        return Spaced(torch.cat([lead, x, x.new_zeros(B, after, E)], 1), before, None, None, T, None)
    row_places = before - 1 + rows.valid.cumsum(1) + before * rows.starts.cumsum(1)  # B T
    L = int(row_places.max()) + 1 + after
    places = row_places + L * torch.arange(B, device=x.device)[:, None]
    flat, sources = x.flatten(0, 1), None
    if bool(rows.valid.all()):
        places = places.flatten()
    else:
        sources = rows.valid.flatten().nonzero()[:, 0]
        flat, places = take(flat, sources), places[rows.valid]
    room = torch.cat([lead, x.new_zeros(B, L - before, E)], 1).flatten(0, 1)
    tokens = room.index_copy(0, places, flat).view(B, L, E)
    return Spaced(tokens, before, places, sources, T, row_places[:, -1])


class _Take(torch.autograd.Function):
    """Its backward pass copies where torch's adds, since no row is taken twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.length = x.shape[0]
        return x.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        (grad,) = outputs
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.length, *grad.shape[1:]).index_copy_(0, places, grad), None


def take(x: Tensor, places: Tensor) -> Tensor:
    """The rows of x [M, E] at different `places` [N]."""
    y: Tensor = _Take.apply(x, places)
    return y
