"""Segments resolved at once or in pieces are what a walk along the row finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paribus.nn.segments import Past, Rows, resolve
from tests.unit.nn.kernel_cases import random_cuts, random_segments

Walk = tuple[list[bool], list[int], list[tuple[int, int]]]


def walk(ids: list[int]) -> Walk:
    """For each token: whether it starts a segment, its position there (-1: padding), and the past after it."""
    starts, positions, pasts = [], [], []
    segment, seen = 0, 0
    for one in ids:
        starts.append(one not in (0, segment))
        if one:
            seen = 0 if one != segment else seen
            segment = one
        positions.append(seen if one else -1)
        seen += one != 0
        pasts.append((segment, seen))
    return starts, positions, pasts


def compare(rows: Rows, segments: Tensor, walks: list[Walk], start: int) -> Past:
    assert rows.valid is not None
    assert rows.starts is not None
    end, past = start + rows.ids.shape[1], rows.after()
    assert torch.equal(rows.valid, segments[:, start:end] != 0)
    assert torch.equal(rows.ids, segments[:, start:end])
    for b, (starts, positions, pasts) in enumerate(walks):
        assert rows.starts[b].tolist() == starts[start:end]
        assert rows.positions[b].masked_fill(~rows.valid[b], -1).tolist() == positions[start:end]
        assert (int(past.segment[b]), int(past.position[b])) == pasts[end - 1]
    return past


@pytest.mark.parametrize("seed", range(20))
def test_any_cut_equals_a_walk(seed: int) -> None:
    length = 1 + seed * 3
    segments = random_segments(5, length, seed)
    x, walks = torch.empty(5, length, 2), [walk(row) for row in segments.tolist()]
    for cuts in ([length], random_cuts(length, seed), list(range(1, length + 1))):
        past, start = None, 0
        for end in cuts:
            past = compare(resolve(x[:, start:end], segments[:, start:end], past), segments, walks, start)
            start = end


def test_without_segments_rows_are_plain_and_count_on() -> None:
    x = torch.empty(2, 3, 4)
    first = resolve(x, None, None)
    assert first.plain
    assert first.positions.tolist() == [[0, 1, 2]] * 2
    second = resolve(x, None, first.after())
    assert second.plain
    assert second.positions.tolist() == [[3, 4, 5]] * 2
    assert second.after().position.tolist() == [6, 6]
    assert second.after().segment.tolist() == [1, 1]


def test_without_segments_a_row_continues_where_it_stood() -> None:
    x = torch.empty(3, 4, 1)
    past = resolve(x, torch.tensor([[0, 0, 0, 0], [0, 5, 5, 0], [1, 2, 2, 2]]), None).after()
    rows = resolve(x[:, :2], None, past)
    assert rows.ids.tolist() == [[1, 1], [5, 5], [2, 2]]
    assert rows.positions.tolist() == [[0, 1], [2, 3], [3, 4]]


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\); the tokens need \(2, 4\)"):
        resolve(torch.empty(2, 4, 1), torch.ones(2, 3), None)
