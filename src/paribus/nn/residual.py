"""The contract of residual schemes: how a block's two branches, their norms and the stream are put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from .mixer import Context, Mixer, Placement
from .norm import make_norm
from .prefix import Prefixed
from .scan_order import Scanned
from .state import State

Stream = Any
"""What blocks pass to each other: [B, T, D], or what the `start` of a scheme with several streams makes of it."""


@dataclass(eq=False)
class Branch:
    """One branch of a block in one forward, called as a function [B, T, D] -> [B, T, D].

    It is the token mixer or the channel mixer, a token shift before it if the block has one, dropout after it;
    `state` becomes the new one when it is called.
    """

    parts: tuple[Mixer | Scanned | Prefixed, ...]
    """What it is made of, in order; the mixer is the last."""
    dropout: nn.Module
    segments: Tensor | None = None
    state: State = None
    keep_state: bool = False
    context: Context | None = None

    @property
    def modules(self) -> list[Mixer]:
        """The parts that have parameters."""
        return [part.mixer if isinstance(part, Scanned | Prefixed) else part for part in self.parts]

    def __call__(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        states = [None] * len(self.parts) if self.state is None else list(self.state)
        for place, part in enumerate(self.parts):
            x, states[place] = part(
                x, segments=self.segments, state=states[place], keep_state=self.keep_state, context=self.context
            )
        self.state = tuple(states) if self.keep_state else None
        dropped: Tensor = self.dropout(x)
        return dropped


class Residual(nn.Module):
    """Puts one block together: the stream and its two branches give the new stream.

    A subclass lives alone in its file, holds a frozen dataclass `Config`, makes its norms with `norm()` and its
    parameters in ``__init__``, and computes in `forward`. It calls each branch exactly once, the mixer first. A scheme
    of several streams says in `start` and `end` what the first block gets and what becomes of the last one's.

    Args:
        norm: the name of the block's norm.
        has_channel: whether the block has a channel mixer; without one, `forward` gets None for it.
    """

    Config: ClassVar[type[Any]]
    reads_condition: ClassVar[bool] = False
    """Whether `Context.condition` decides what the block does."""
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

    def start(self, x: Tensor, recompute: bool) -> Stream:
        """The stream that the first block gets, of the embeddings [B, T, D].

        Args:
            recompute: a scheme that can be inverted may drop what its blocks compute, and compute it again backward.
        """
        return x

    def forward(self, x: Stream, mix: Branch, channel: Branch | None) -> Stream:
        """[B, T, D] -> [B, T, D], or more streams to as many."""
        raise NotImplementedError

    def end(self, x: Stream) -> Tensor:
        """[B, T, D], what the final norm gets, of the last block's stream."""
        only: Tensor = x
        return only

    def reset_parameters(self) -> None:
        """Initialise the parameters that this module owns directly."""
