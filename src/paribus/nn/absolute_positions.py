"""Positions that are added to the embeddings, by name: the model's ``position``.

Those that act inside attention (rotary, ALiBi, …) are settings of that mixer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .mixer import Context, Mixer, Placement
from .positions import angles_of, image_grid, once
from .segments import Rows
from .settings import nearest
from .state import State

BASE = 10_000.0


class AbsolutePosition(Mixer):
    """x[t] + p[t], with t the true position in the segment; a subclass says what p is.

    Raises:
        ValueError: a position beyond the longest, where there is one.
    """

    name: str
    longest: int | None = None
    """How many positions there are; None: any number."""

    def __init__(self, placement: Placement) -> None:
        super().__init__(placement, None)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, State]:
        """The state is [B, tokens so far, 0], whose length bounds all positions without asking the device for any."""
        num_tokens = x.shape[1] + (0 if state is None else state.shape[1])
        if self.longest is not None and num_tokens > self.longest:
            self._check(rows, self.longest)
        p = self.vectors(once(rows.positions).clamp(min=0, max=None if self.longest is None else self.longest - 1), x)
        return x + p.to(x.dtype), x.new_empty(len(x), num_tokens, 0)

    def vectors(self, positions: Tensor, like: Tensor) -> Tensor:
        """p [B or 1, T, D] for positions [B or 1, T]; computed in the dtype of `like` or wider."""
        raise NotImplementedError

    def _check(self, rows: Rows, longest: int) -> None:
        positions = rows.positions if rows.valid is None else rows.positions * rows.valid
        last = int(positions.max())
        if last >= longest:
            raise ValueError(f"position '{self.name}' knows {longest} positions; token {last + 1} lies beyond")


class Learned(AbsolutePosition):
    """x[t] + p[t], a learned vector for each position (Gehring et al. 2017, arXiv:1705.03122; as GPT-2)."""

    name = "learned"

    def __init__(self, placement: Placement) -> None:
        super().__init__(placement)
        self.longest = placement.max_length
        self.table = nn.Parameter(torch.empty(self.longest, placement.width))

    def vectors(self, positions: Tensor, like: Tensor) -> Tensor:
        """Rows of the table."""
        return self.table[positions]

    def reset_parameters(self) -> None:
        """Normal, std 0.02."""
        nn.init.normal_(self.table, std=0.02)


class Sinusoidal(AbsolutePosition):
    """x[t] + p[t], p[2i] = sin(t / 10000^(2i/D)), p[2i+1] = cos(same) (Vaswani et al. 2017, arXiv:1706.03762)."""

    name = "sinusoidal"

    def __init__(self, placement: Placement) -> None:
        super().__init__(placement)
        _check_width(placement, self.name, 2)

    def vectors(self, positions: Tensor, like: Tensor) -> Tensor:
        """Sine and cosine of each angle, side by side."""
        return _waves(positions, self.placement.width, like.dtype)


class Sinusoidal2D(AbsolutePosition):
    """x[t] + [p(row), p(column)], each sinusoidal, D/2 wide (as in He et al. 2021, arXiv:2111.06377, for images).

    Token t of an image is the patch in row ⌊t / columns⌋ and column t mod columns.
    """

    name = "sinusoidal_2d"

    def __init__(self, placement: Placement) -> None:
        super().__init__(placement)
        rows, self.num_columns = image_grid(placement, self.name)
        self.longest = rows * self.num_columns
        _check_width(placement, self.name, 4)

    def vectors(self, positions: Tensor, like: Tensor) -> Tensor:
        """Waves of the row, then of the column."""
        axes = (positions // self.num_columns, positions % self.num_columns)
        return torch.cat([_waves(axis, self.placement.width // 2, like.dtype) for axis in axes], -1)


class Learned2D(AbsolutePosition):
    """x[t] + r[row] + c[column], learned vectors of rows and columns of patches (Ho et al. 2019, arXiv:1912.12180).

    Token t of an image is the patch in row ⌊t / columns⌋ and column t mod columns.
    """

    name = "learned_2d"

    def __init__(self, placement: Placement) -> None:
        super().__init__(placement)
        rows, columns = image_grid(placement, self.name)
        self.longest = rows * columns
        self.row_table = nn.Parameter(torch.empty(rows, placement.width))
        self.column_table = nn.Parameter(torch.empty(columns, placement.width))

    def vectors(self, positions: Tensor, like: Tensor) -> Tensor:
        """The sum of both."""
        num_columns = len(self.column_table)
        return self.row_table[positions // num_columns] + self.column_table[positions % num_columns]

    def reset_parameters(self) -> None:
        """Normal, std 0.02."""
        nn.init.normal_(self.row_table, std=0.02)
        nn.init.normal_(self.column_table, std=0.02)


ABSOLUTE_POSITIONS: dict[str, type[AbsolutePosition]] = {
    kind.name: kind for kind in (Learned, Learned2D, Sinusoidal, Sinusoidal2D)
}


def make_absolute_position(name: str, placement: Placement) -> Mixer | None:
    """The module that adds positions to embeddings [B, T, D]; None for "none".

    Raises:
        ValueError: unknown name, a width that does not fit, or no grid where one is needed.
    """
    if name == "none":
        return None
    if name not in ABSOLUTE_POSITIONS:
        raise ValueError(f"model: unknown position '{name}'; {nearest(name, ['none', *ABSOLUTE_POSITIONS])}")
    return ABSOLUTE_POSITIONS[name](placement)


def _waves(positions: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Sine and cosine in turns, [..., width]."""
    angles = angles_of(positions, width, BASE, dtype)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def _check_width(placement: Placement, position: str, parts: int) -> None:
    if placement.width % parts:
        raise ValueError(f"position '{position}' needs a width that {parts} divides; it is {placement.width}")
