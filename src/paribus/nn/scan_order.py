"""The order in which a block reads an image's patches; nothing here has parameters.

Linear RNNs and convolutions read a row of tokens, two-directional ones both ways. Row by row, the patch above is a
whole row of patches away; column by column it is the neighbour (Liu et al. 2024, arXiv:2401.10166: four directions).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .mixer import Context, Mixer
from .state import State


@dataclass(frozen=True)
class Scanned:
    """A part of a block that reads the patches column by column, or that way too and gives the mean of both.

    Tokens behind the patches, such as a class token, stay where they are. What the part gives to later layers is in
    raster order, and the mean of both ways as well.
    """

    mixer: Mixer
    grid: tuple[int, int]
    """Patch rows and columns of the image, of which there are as many: a position module reads the turned one too."""
    both: bool

    def __call__(
        self, x: Tensor, *, segments: Tensor | None, state: State, keep_state: bool, context: Context | None
    ) -> tuple[Tensor, State]:
        """[B, T, D] -> [B, T, D], as a mixer.

        Raises:
            ValueError: the tokens are padded or packed, or a state is asked for.
        """
        if segments is not None or state is not None or keep_state:
            raise ValueError("images are read column by column only whole: without attention_mask and without a cache")
        by_columns, value = self._by_columns(x, context)
        if not self.both:
            if context is not None and value is not None:
                context.first_value = value
            return by_columns, None
        by_rows: Tensor = self.mixer(x, context=context)[0]
        if context is not None and context.first_value is not None and value is not None:
            layer, values = context.first_value
            context.first_value = (layer, (values + value[1]) / 2)
        return (by_rows + by_columns) / 2, None

    def _by_columns(self, x: Tensor, context: Context | None) -> tuple[Tensor, tuple[int, Tensor] | None]:
        """What the mixer makes of the columns, and the first value that it writes, both in raster order."""
        rows, columns = self.grid
        if context is None:
            return _turn(self.mixer(_turn(x, rows, columns))[0], columns, rows), None
        given = context.first_value
        if given is not None:
            given = (given[0], _turn(given[1], rows, columns))
        turned = replace(context, first_value=given)
        y: Tensor = self.mixer(_turn(x, rows, columns), context=turned)[0]
        written = turned.first_value
        if written is given or written is None:
            return _turn(y, columns, rows), None
        return _turn(y, columns, rows), (written[0], _turn(written[1], columns, rows))


def _turn(x: Tensor, rows: int, columns: int) -> Tensor:
    """[B, rows·columns + others, …] -> the same tokens, the patches column by column."""
    patches = x[:, : rows * columns].unflatten(1, (rows, columns)).transpose(1, 2).flatten(1, 2)
    return torch.cat([patches, x[:, rows * columns :]], 1)
