"""THE CONTRACT: what a token mixer is, and the forward pass that every one of them shares.

Axis letters, the same in the whole library: B batch, T tokens, D width, H heads, K key, V value, C chunk, N state,
E expanded. A mixer keeps eight promises, each a test over every registered mixer (tests/contract/test_mixers.py):
shape, direction, one function, opaque state, segments, nothing else, initialisation, honest cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from .segments import Past, Rows, resolve
from .state import State


@dataclass(frozen=True)
class Placement:
    """Where a mixer stands in its model."""

    width: int
    """D, the width of the residual stream."""
    layer: int = 0
    num_layers: int = 1
    causal: bool = True
    max_length: int = 1024
    """The longest sequence in tokens; only mixers with an explicit position table are bound to it."""
    grid: tuple[int, int] | None = None
    """Patch rows and columns of an image; None for text."""


@dataclass
class Context:
    """What crosses layers in one forward of the backbone; made anew by it each time."""

    tables: dict[tuple[float | int | str, ...], tuple[Tensor, ...]] = field(default_factory=dict)
    """Tables that several layers share, such as rotary angles, by what determines them."""
    shared: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    """What `SharedPart`s give each other before the first layer runs, by their name and then by layer."""
    first_value: tuple[int, Tensor] | None = None
    """The values [B, T, H, V] of the first layer that has such, and that layer's number (RWKV-7)."""
    prefix_length: Tensor | None = None
    """[B] how many of the first tokens of each segment see one another both ways; None: none (see `prefix`)."""
    prefix_tables: dict[tuple[float | int | str, ...], tuple[Tensor, ...]] = field(default_factory=dict)
    """The `tables` of what reads those."""
    condition: Tensor | None = None
    """[B, D] what a row is made for (time and class of an image); read by residual schemes that say so."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Losses beside the task's, weighted and summed over layers, by name (how evenly experts are used)."""

    def add_loss(self, name: str, value: Tensor) -> None:
        """Add `value`, a weighted scalar, to the loss called `name`."""
        self.losses[name] = self.losses[name] + value if name in self.losses else value


class SharedPart(nn.Module):
    """A part of a mixer that gives a tensor to its namesakes in other layers before the first layer runs."""

    shared_name: str
    placement: Placement

    def share(self) -> Tensor:
        """What the others get to see, in `Context.shared`."""
        raise NotImplementedError


def make_context(layers: nn.Module) -> Context:
    """The context of one forward through `layers`."""
    context = Context()
    for part in layers.modules():
        if isinstance(part, SharedPart):
            context.shared.setdefault(part.shared_name, {})[part.placement.layer] = part.share()
    return context


class Mixer(nn.Module):
    """Moves information between tokens: [B, T, D] -> [B, T, D].

    A subclass lives alone in its file, holds a frozen dataclass `Config` of JSON scalars with defaults, makes its
    parameters in ``__init__``, gives values to those that it owns directly in `reset_parameters` (through
    ``torch.nn.init`` only; ``nn.Linear`` and norms inside it are initialised by the model's rule), and computes in
    `mix`. No norm before, no residual around, no dropout: those are the block's.
    """

    Config: ClassVar[type[Any]]

    def __init__(self, placement: Placement, config: Any) -> None:
        super().__init__()
        self.placement = placement
        self.config = config

    def forward(
        self,
        x: Tensor,
        *,
        segments: Tensor | None = None,
        state: State = None,
        keep_state: bool = False,
        context: Context | None = None,
    ) -> tuple[Tensor, State]:
        """Mix the tokens `x` after the past `state`.

        Args:
            x: [B, T, D].
            segments: [B, T] integers, 0 = padding; tokens interact only where they are equal. None: one segment.
            state: what an earlier call returned, for the tokens before `x`; None is no past. Never changed in place.
            keep_state: return the state after `x`; else None is returned in its place.
            context: what crosses layers; None when the mixer is used alone.

        Returns:
            y [B, T, D], zero at padding, and the state.

        Raises:
            ValueError: a state given to a two-directional mixer, or segments of a wrong shape.
        """
        if not self.placement.causal and (state is not None or keep_state):
            raise ValueError(f"{type(self).__name__} with causal=False reads both sides at once and keeps no state")
        past: Past | None
        past, memory = (None, None) if state is None else state
        rows = resolve(x, segments, past)
        y, memory = self.mix(x, rows, memory, context)
        if rows.valid is not None:
            y = y * rows.valid[..., None]
        return y, (rows.after(), memory) if keep_state else None

    def mix(self, x: Tensor, rows: Rows, state: State, context: Context | None) -> tuple[Tensor, State]:
        """The mixer's own computation: x [B, T, D] -> y [B, T, D] and the kernels' new state.

        `rows` goes to the kernels, which own the meaning of segments, and gives true positions.
        """
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Initialise the parameters that this module owns directly; most mixers own none."""


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, T, H·K] -> [B, T, H, K]."""
    return x.unflatten(-1, (num_heads, -1))


def check_divisible(width: int, num_heads: int, owner: str) -> int:
    """The width of one head.

    Raises:
        ValueError: `num_heads` does not divide `width`.
    """
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"{owner}: width {width} is not divisible by num_heads {num_heads}")
    return width // num_heads
