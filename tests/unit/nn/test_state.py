"""States are nests that the library handles without knowing them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paribus.nn.cache import StateCache
from paribus.nn.state import map_state, select_rows, state_bytes, state_tensors


class Pair(NamedTuple):
    left: Tensor
    right: list[Tensor]


def nest() -> tuple[Pair, None, dict[str, Tensor]]:
    rows = torch.arange(3.0)[:, None]
    return Pair(rows, [rows + 10, rows + 20]), None, {"a": (rows + 30).half()}


def test_mapping_keeps_the_nest() -> None:
    mapped = map_state(lambda tensor: tensor * 2, nest())
    assert isinstance(mapped, tuple)
    assert isinstance(mapped[0], Pair)
    assert isinstance(mapped[0].right, list)
    assert mapped[1] is None
    assert mapped[0].right[1].flatten().tolist() == [40, 42, 44]
    assert mapped[2]["a"].flatten().tolist() == [60, 62, 64]
    assert map_state(torch.neg, None) is None


def test_tensors_and_bytes() -> None:
    assert [int(tensor[0]) for tensor in state_tensors(nest())] == [0, 10, 20, 30]
    assert state_bytes(nest()) == 3 * (4 + 4 + 4 + 2)
    assert state_bytes(None) == 0


def test_rows_are_chosen_and_repeated() -> None:
    chosen = select_rows(nest(), torch.tensor([2, 2, 0, 1]))
    assert chosen[0].right[0].flatten().tolist() == [12, 12, 10, 11]
    assert chosen[2]["a"].shape == (4, 1)


def test_the_cache_holds_any_state() -> None:
    cache = StateCache(2)
    assert cache.get_seq_length() == 0
    assert cache.device is None
    cache.store([nest(), nest()], 5)
    cache.store([nest(), nest()], 1)
    assert cache.get_seq_length() == 6
    assert cache.num_bytes() == 2 * state_bytes(nest())
    assert cache.device == torch.device("cpu")
    cache.reorder_cache(torch.tensor([1, 0, 2]))
    assert cache.states()[1][0].left.flatten().tolist() == [1, 0, 2]
    cache.batch_repeat_interleave(2)
    assert cache.states()[0][0].left.flatten().tolist() == [1, 1, 0, 0, 2, 2]
    cache.batch_select_indices(torch.tensor([5]))
    assert cache.states()[0][2]["a"].flatten().tolist() == [32]
    cache.reset()
    assert cache.states() == [None, None]
    assert cache.get_seq_length() == 0
