"""The contract of channel mixers, which work within each token."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from .mixer import Placement


class Channel(nn.Module):
    """Mixes the channels of one token: [B, T, D] -> [B, T, D], every token alone.

    Its `Config` has a field ``expansion``: the inner width is round(expansion · D). That is what a study solves when
    sizes are matched. `reset_parameters` initialises what the module owns directly.
    """

    Config: ClassVar[type[Any]]

    def __init__(self, placement: Placement, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initialise the parameters that this module owns directly; most channel mixers own none."""


def inner_width(width: int, expansion: float) -> int:
    """The inner width E of a channel mixer.

    Raises:
        ValueError: an expansion that leaves no channel.
    """
    inner = round(expansion * width)
    if inner < 1:
        raise ValueError(f"expansion {expansion} of width {width} leaves no inner channel; it must be positive")
    return inner
