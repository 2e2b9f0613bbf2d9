"""The contract of residual schemes: how a block's two branches, their norms and the stream are put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from .mixer import Placement
from .norm import make_norm

Branch = Callable[[Tensor], Tensor]
"""A branch of a block, [B, T, D] -> [B, T, D]: its token mixer or its channel mixer, dropout included."""


class Residual(nn.Module):
    """Puts one block together: the stream and its two branches give the new stream.

    A subclass lives alone in its file, holds a frozen dataclass `Config`, makes its norms with `norm()` and its
    parameters in ``__init__``, and computes in `forward`. It calls each branch exactly once, the mixer first.

    Args:
        norm: the name of the block's norm.
        has_channel: whether the block has a channel mixer; without one, `forward` gets None for it.
    """

    Config: ClassVar[type[Any]]
    streams: ClassVar[int] = 1
    """How many residual streams the scheme carries; all blocks of a model carry as many."""

    def __init__(self, placement: Placement, config: Any, norm: str, has_channel: bool) -> None:
        super().__init__()
        self.placement = placement
        self.config = config
        self.norm_name = norm
        self.has_channel = has_channel

    def norm(self) -> nn.Module:
        """A new norm of the block's kind, over the width."""
        return make_norm(self.norm_name, self.placement.width)

    def forward(self, x: Tensor, mix: Branch, channel: Branch | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initialise the parameters that this module owns directly."""
