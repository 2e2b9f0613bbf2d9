"""Positions that are added to the embeddings, by name: the model's ``position``.

Those that act inside attention (rotary, ALiBi, …) are settings of that mixer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .mixer import Context, Mixer, Placement
from .segments import Rows
from .settings import nearest
from .state import State


class Learned(Mixer):
    """x[t] + p[t] with a learned vector for each position (Gehring et al. 2017, arXiv:1705.03122; as GPT-2).

    Raises:
        ValueError: a position beyond the longest.
    """

    def __init__(self, placement: Placement) -> None:
        super().__init__(placement, None)
        self.table = nn.Parameter(torch.empty(placement.max_length, placement.width))

    def mix(self, x: Tensor, rows: Rows, state: State, context: Context | None) -> tuple[Tensor, State]:
        """[B, T, D] -> [B, T, D]."""
        longest = self.table.shape[0]
        positions = rows.positions
        if x.shape[1] > longest or rows.past is not None:
            last = int((positions if rows.valid is None else positions * rows.valid).max())
            if last >= longest:
                raise ValueError(f"position 'learned' knows {longest} positions; token {last + 1} lies beyond")
        return x + self.table[positions.clamp(max=longest - 1)].to(x.dtype), None

    def reset_parameters(self) -> None:
        """Normal, std 0.02."""
        nn.init.normal_(self.table, std=0.02)


ABSOLUTE_POSITIONS: dict[str, type[Mixer]] = {"learned": Learned}


def make_absolute_position(name: str, placement: Placement) -> Mixer | None:
    """The module that adds positions to embeddings [B, T, D]; None for "none".

    Raises:
        ValueError: unknown name.
    """
    if name == "none":
        return None
    if name not in ABSOLUTE_POSITIONS:
        raise ValueError(f"model: unknown position '{name}'; {nearest(name, ['none', *ABSOLUTE_POSITIONS])}")
    return ABSOLUTE_POSITIONS[name](placement)  # type: ignore[call-arg]  # these take no settings
