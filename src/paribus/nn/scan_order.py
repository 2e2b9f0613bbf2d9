"""The order in which a token mixer reads an image's patches; nothing here has parameters.

Linear RNNs and convolutions read a row of tokens, two-directional ones both ways. Row by row, the patch above is a
whole row of patches away; column by column it is the neighbour (Liu et al. 2024, arXiv:2401.10166: four directions).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from .mixer import Context, Mixer
from .state import State


@dataclass(frozen=True)
class Scanned:
    """A mixer that reads the patches column by column, or that way too and gives the mean of both.

    Tokens behind the patches, such as a class token, stay where they are. The mixer's placement has the grid that it
    reads: for columns alone, that of the image turned over.
    """

    mixer: Mixer
    grid: tuple[int, int]
    """Patch rows and columns of the image."""
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
        if not self.both:
            return self._by_columns(x, context), None
        by_rows: Tensor = self.mixer(x, context=context)[0]  # first: what it gives to later layers is in their order
        return (by_rows + self._by_columns(x, context)) / 2, None

    def _by_columns(self, x: Tensor, context: Context | None) -> Tensor:
        rows, columns = self.grid
        turned = None if context is None else copy.copy(context)
        if turned is not None and turned.first_value is not None:
            layer, value = turned.first_value
            turned.first_value = (layer, _turn(value, rows, columns))
        y: Tensor = self.mixer(_turn(x, rows, columns), context=turned)[0]
        if turned is not None and context is not None and context.first_value is None and turned.first_value:
            layer, value = turned.first_value
            context.first_value = (layer, _turn(value, columns, rows))
        return _turn(y, columns, rows)


def _turn(x: Tensor, rows: int, columns: int) -> Tensor:
    """[B, rows·columns + others, …] -> the same tokens, the patches column by column."""
    patches = x[:, : rows * columns].unflatten(1, (rows, columns)).transpose(1, 2).flatten(1, 2)
    return torch.cat([patches, x[:, rows * columns :]], 1)
