"""Segments on rows of their own and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paribus.nn.kernels.alignment import align, each_segment, history_of
from paribus.nn.segments import Past, resolve
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, random_segments

SEGMENTS = torch.tensor([[0, 1, 1, 0, 2], [3, 3, 3, 3, 3], [0, 0, 0, 0, 0]])


def numbers(rows: int, length: int) -> Tensor:
    return torch.arange(1.0, rows * length + 1, dtype=torch.float64).view(rows, length, 1)


def test_by_hand() -> None:
    x = numbers(3, 5)
    aligned = align(x, resolve(x, SEGMENTS, None), None)
    assert aligned.tokens[..., 0].tolist() == [[2, 3, 0, 0, 0], [5, 0, 0, 0, 0], [6, 7, 8, 9, 10]]
    assert aligned.history[..., 0].tolist() == [[5, 0, 0, 0, 0], [6, 7, 8, 9, 10], [0, 0, 0, 0, 0]]
    assert aligned.pack(aligned.tokens)[..., 0].tolist() == [[0, 2, 3, 0, 5], [6, 7, 8, 9, 10], [0] * 5]


def test_a_past_goes_on_or_is_forgotten() -> None:
    x = numbers(4, 2)
    history = -numbers(4, 3)
    history[1, 1:] = history[3] = 0
    past = Past(torch.tensor([1, 1, 2, 0]), torch.tensor([3, 1, 3, 0]))
    segments = torch.tensor([[1, 2], [0, 1], [0, 0], [1, 1]])
    aligned = align(x, resolve(x, segments, past), history)
    assert aligned.history[..., 0].tolist() == [[2, 0, 0], [-4, 4, 0], [-7, -8, -9], [7, 8, 0]]
    assert aligned.tokens[0, :, 0].tolist() == [-1, -2, -3, 1]
    assert aligned.pack(aligned.tokens)[..., 0].tolist() == [[1, 2], [0, 4], [0, 0], [7, 8]]


def test_without_padding_nothing_moves() -> None:
    x = numbers(2, 4)
    aligned = align(x, resolve(x, None, None), None)
    assert aligned.tokens is x
    assert aligned.pack(x) is x


def test_what_else_belongs_to_the_tokens() -> None:
    x = numbers(3, 5)
    aligned = align(x, resolve(x, SEGMENTS, None), None)
    assert aligned.place(-x)[..., 0].tolist() == [[-2, -3, 0, 0, 0], [-5, 0, 0, 0, 0], [-6, -7, -8, -9, -10]]
    lengths = aligned.lengths()
    assert lengths is not None
    assert lengths.tolist() == [2, 1, 5]
    history, past = -numbers(3, 2), Past(torch.tensor([1, 1, 1]), torch.tensor([1, 2, 0]))
    aligned = align(x[:, :1], resolve(x[:, :1], None, past), history)
    assert aligned.place(x[:, :1])[..., 0].tolist() == [[0, 1, 0], [0, 0, 6], [11, 0, 0]]
    plain = align(x, resolve(x, None, None), None)
    assert plain.lengths() is None
    assert plain.place(x) is x


def test_only_padding() -> None:
    x = numbers(2, 4)
    aligned = align(x, resolve(x, torch.zeros(2, 4), None), None)
    assert not aligned.tokens.any()
    assert aligned.history.shape == (2, 0, 1)
    assert not aligned.pack(aligned.tokens + 1).any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length", [1, 7, 65])
def test_agrees_with_one_segment_at_a_time(length: int, seed: int) -> None:
    x, segments = torch.randn(4, length, 2, 3, dtype=torch.float64), random_segments(4, length, seed)

    def fast(x: Tensor, *, rows, state):  # type: ignore[no-untyped-def]
        aligned = align(x, rows, state)
        return aligned.pack(aligned.tokens.cumsum(1)), aligned.history

    def plain(x: Tensor, *, rows, state):  # type: ignore[no-untyped-def]
        return each_segment(x, rows, state, lambda inputs: inputs.cumsum(0))

    for ids in (None, segments):
        whole = plain(x, rows=resolve(x, ids, None), state=None)
        for run in (fast, plain):
            for cuts in ([length], random_cuts(length, seed)):
                close(in_pieces(run, [x], ids, cuts), whole, 1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length", [1, 7, 65])
def test_a_history_from_all_tokens_so_far(length: int, seed: int) -> None:
    x = torch.randn(4, length, 2, 3, dtype=torch.float64)
    for segments in (None, random_segments(4, length, seed), torch.zeros(4, length)):
        rows = resolve(x, segments, None)
        expected = align(x, rows, None).history
        order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
        got = history_of(x[:, order], rows.ids[:, order], rows.positions[:, order], rows.after())
        assert torch.equal(got, expected)
