"""What generation carries between tokens: one opaque state for each layer, in the shape transformers expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .state import State, map_state, select_rows, state_bytes, state_tensors


class StateLayer(CacheLayerMixin):
    """The state of one mixer and how many tokens, padding included, led to it."""

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.state: State = None
        self.num_tokens = 0

    def store(self, state: State, num_tokens: int) -> None:
        """Keep `state`, reached after `num_tokens` more tokens."""
        self.state = state
        self.num_tokens += num_tokens
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens seen so far, padding included."""
        return self.num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of an attention mask over past and present."""
        return self.num_tokens + query_length, 0

    def get_max_length(self) -> int:
        """-1: no bound of its own."""
        return -1

    def get_max_cache_shape(self) -> int:
        """The name of `get_max_length` before transformers 5.10."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.num_tokens, self.is_initialized = None, 0, False

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        self.state = map_state(function, self.state)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes the old row `beam_idx[i]`."""
        self.state = select_rows(self.state, beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times in a row."""
        self._map(lambda tensor: tensor.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the rows `indices`."""
        self.state = select_rows(self.state, indices)

    def offload(self) -> None:
        """Move the state to the CPU, remembering where it was."""
        self._map(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """States are read where they lie; the mixer's device decides."""

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Recurrent states cannot forget their last tokens.

        Raises:
            ValueError: always.
        """
        raise ValueError("this cache holds recurrent states, which cannot be cropped; generate without assistance")

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Not used: states arrive whole through `store`."""
        raise ValueError("a state layer has no keys and values; call store()")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """Not used: states arrive whole through `store`."""
        raise ValueError("a state layer has no keys and values; call store()")


class StateCache(Cache):
    """One `StateLayer` for each layer of a model."""

    layers: list[StateLayer]  # type: ignore[assignment]

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[StateLayer() for _ in range(num_layers)])

    def states(self) -> list[State]:
        """The states of all layers, None where nothing has been seen."""
        return [layer.state for layer in self.layers]

    def store(self, states: list[State], num_tokens: int) -> None:
        """Keep the new states of all layers, reached after `num_tokens` more tokens."""
        for layer, state in zip(self.layers, states, strict=True):
            layer.store(state, num_tokens)

    def num_bytes(self) -> int:
        """Memory of all states, in bytes."""
        return sum(state_bytes(layer.state) for layer in self.layers)

    @property
    def device(self) -> torch.device | None:
        """Where the first state lies; None before any token."""
        for layer in self.layers:
            for tensor in state_tensors(layer.state):
                return tensor.device
        return None
