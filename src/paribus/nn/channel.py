"""The contract of channel mixers, the other half of a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional

from .mixer import Context, Mixer
from .state import State

Activation = Literal["gelu", "identity", "leaky_relu", "relu", "sigmoid", "silu", "squared_relu"]
"""The nonlinearities on offer inside channel mixers."""


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al. 2021, arXiv:2109.08668)."""
    return functional.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "identity": lambda x: x,
    "leaky_relu": functional.leaky_relu,
    "relu": functional.relu,
    "sigmoid": functional.sigmoid,
    "silu": functional.silu,
    "squared_relu": squared_relu,
}


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
