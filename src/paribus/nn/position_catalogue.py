"""All positions that some setting takes, by name, with what they compute and where they are set."""

from __future__ import annotations

import inspect

from .absolute_positions import ABSOLUTE_POSITIONS
from .position_bias import BIASES
from .positions import ROTATIONS, alibi_slopes
from .relative_positions import RELATIVE_POSITIONS


class Position:
    """One name; its docstring is one line: the equation, the source, and the settings that take it."""

    def __init__(self, kind: object, *places: str) -> None:
        equation = (inspect.getdoc(kind) or "").partition("\n")[0]
        self.kind = kind
        self.places = places
        self.__doc__ = f"{equation} Set by {', '.join(places)}."


_WIDELY = ("attention.position", "retnet.position", "forgetting_attention.position", "container.position")
_PLACES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(ABSOLUTE_POSITIONS, ("model.position",)),
    **dict.fromkeys(ROTATIONS, ("attention.position",)),
    **dict.fromkeys(BIASES, ("attention.position",)),
    "rotary": _WIDELY,
    "alibi": ("attention.position",),
    "rotation": ("transnormer.position", "linear.position"),
    "cosine": ("transnormer.position", "linear.position", "lightnet.position", "tnl.position"),
}
_KINDS = {**ABSOLUTE_POSITIONS, **ROTATIONS, "alibi": alibi_slopes, **BIASES, **RELATIVE_POSITIONS}

POSITIONS: dict[str, Position] = {name: Position(kind, *_PLACES[name]) for name, kind in _KINDS.items()}
"""tnl's setting says in which layers "cosine" is, all others name a position."""
