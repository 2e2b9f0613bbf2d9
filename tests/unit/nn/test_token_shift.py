"""Token shift: the neighbour in the segment, whatever lies between, however the sequence is cut."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.nn.segments import resolve
from paribus.nn.token_shift import shift_tokens
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, random_segments, real, with_gradients

LENGTHS = [1, 2, 7, 65]


def neighbours(x: Tensor, segments: Tensor, causal: bool) -> Tensor:
    """The definition, token by token."""
    y = torch.zeros_like(x)
    for b, row in enumerate(segments.tolist()):
        for t, segment in enumerate(row):
            same = [s for s, other in enumerate(row) if other == segment != 0]
            before, after = [s for s in same if s < t], [s for s in same if s > t]
            if causal and before:
                y[b, t] = x[b, before[-1]]
            elif not causal:
                y[b, t] = sum(0.5 * x[b, s] for s in (*before[-1:], *after[:1]))
    return y


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_neighbour_is_that_of_the_definition(length: int, layout: str, causal: bool) -> None:
    x = torch.randn(3, length, 4, dtype=torch.float64, requires_grad=True)
    segments = random_segments(3, length) if layout == "segments" else None
    marks = torch.ones(3, length, dtype=torch.long) if segments is None else segments

    def definition(x: Tensor, **_: Any) -> tuple[Tensor, None]:
        return neighbours(x, marks, causal) + 0 * x, None

    def ours(x: Tensor, **options: Any) -> tuple[Tensor, None]:
        return shift_tokens(x, causal=causal, **options)[0], None

    close(with_gradients(ours, [x], [], segments), with_gradients(definition, [x], [], segments), 1e-14)


@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("length", LENGTHS)
def test_cut_anywhere_gives_the_same(length: int, layout: str) -> None:
    x = torch.randn(3, length, 4, dtype=torch.float64)
    segments = random_segments(3, length) if layout == "segments" else None
    run = partial(shift_tokens, causal=True)
    whole, last = run(x, rows=resolve(x, segments, None), state=None)
    for cuts in (random_cuts(length), list(range(1, length + 1))):
        pieces, state = in_pieces(run, [x], segments, cuts)
        close(real(pieces, segments), real(whole, segments), 0)
        close(state, last, 0)
