"""States are opaque nests of tensors, batch first: reordered, repeated, weighed without knowing the mixer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

State = Any
"""None (no past) or any nest of tuples, named tuples, lists and dicts of tensors whose dimension 0 is the batch."""


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """The same nest with `function` applied to every tensor."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {key: map_state(function, value) for key, value in state.items()}
    values = [map_state(function, value) for value in state]
    return type(state)(*values) if hasattr(state, "_fields") else type(state)(values)


def state_tensors(state: State) -> list[Tensor]:
    """All tensors of the nest, in order."""
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_state(collect, state)
    return found


def state_bytes(state: State) -> int:
    """Memory that the state holds, in bytes; what decoding carries from token to token."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state_tensors(state))


def select_rows(state: State, rows: Tensor) -> State:
    """The batch rows `rows` [B'] of a state, in that order; beams reorder and prompts repeat with this."""
    return map_state(lambda tensor: tensor.index_select(0, rows.to(tensor.device)), state)
