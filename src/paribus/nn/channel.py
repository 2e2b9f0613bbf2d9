"""The contract of channel mixers, the other half of a block."""

from __future__ import annotations

from torch import Tensor

from .mixer import Context, Mixer
from .state import State


class Channel(Mixer):
    """Mixes the channels of one token: [B, T, D] -> [B, T, D], every token alone; `transform` computes.

    Its `Config` has a field ``expansion``: the inner width is round(expansion · D). That is what a study solves when
    sizes are matched. A channel mixer that looks at neighbouring tokens (a convolution, a token shift) is a plain
    `Mixer` in this folder, with the same field, and keeps a mixer's promises.
    """

    def forward(
        self,
        x: Tensor,
        *,
        segments: Tensor | None = None,
        state: State = None,
        keep_state: bool = False,
        context: Context | None = None,
    ) -> tuple[Tensor, State]:
        """[B, T, D] -> [B, T, D] and no state; what the other arguments say is nothing to a token alone."""
        return self.transform(x), None

    def transform(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        raise NotImplementedError


def inner_width(width: int, expansion: float) -> int:
    """The inner width E of a channel mixer.

    Raises:
        ValueError: an expansion that leaves no channel.
    """
    inner = round(expansion * width)
    if inner < 1:
        raise ValueError(f"expansion {expansion} of width {width} leaves no inner channel; it must be positive")
    return inner
