"""Running sums of exponentials against a plain loop: loud values, packed segments, gradients, cuts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.nn.kernels.log_sum import running_log_sum, segment_log_sum
from paribus.nn.segments import resolve
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, random_segments, real, with_gradients

LENGTHS = [1, 7, 63, 65, 200]


def loop(x: Tensor, segments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z before each token, after the last, and over the whole segment of each token, in float64."""
    x = x.double()
    before, last, total = torch.zeros_like(x), [], torch.zeros_like(x)
    for b in range(x.shape[0]):
        z, current = torch.zeros_like(x[b, 0]), 0
        for t, segment in enumerate(segments[b].tolist()):
            if segment == 0:
                continue
            if segment != current:
                z, current = torch.zeros_like(z), segment
            before[b, t] = z
            z = torch.logaddexp(z, x[b, t])
        last.append(z)
        for segment in segments[b].unique().tolist():
            mine = segments[b] == segment
            total[b, mine] = torch.cat([torch.zeros_like(x[b, :1]), x[b, mine]]).logsumexp(0)
    return before, torch.stack(last), total


def inputs(length: int, scale: float, dtype: torch.dtype) -> Tensor:
    """Values of every size up to `scale`: quiet tokens beside loud ones, of both signs."""
    draw = torch.Generator().manual_seed(length)
    x = torch.randn(3, length, 5, generator=draw, dtype=torch.float64)
    return (x * scale ** torch.rand(3, length, 5, generator=draw, dtype=torch.float64)).to(dtype).requires_grad_()


def marks_of(layout: str, length: int) -> tuple[Tensor | None, Tensor]:
    segments = random_segments(3, length) if layout == "segments" else None
    return segments, torch.ones(3, length, dtype=torch.long) if segments is None else segments


@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("length", LENGTHS)
def test_running_sum_equals_the_loop_with_gradients(length: int, layout: str) -> None:
    segments, marks = marks_of(layout, length)

    def definition(x: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return loop(x, marks)[:2]

    x = inputs(length, 3.0, torch.float64)
    got, expected = (with_gradients(run, [x], [], segments) for run in (running_log_sum, definition))
    close(got, expected, 1e-12)


@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("length", LENGTHS)
def test_sum_of_segments_equals_the_loop_with_gradients(length: int, layout: str) -> None:
    segments, marks = marks_of(layout, length)

    def ours(x: Tensor, *, rows: Any, state: Any) -> tuple[Tensor, None]:
        return segment_log_sum(x, rows=rows), None

    def definition(x: Tensor, **_: Any) -> tuple[Tensor, None]:
        return loop(x, marks)[2], None

    x = inputs(length, 3.0, torch.float64)
    got, expected = (with_gradients(run, [x], [], segments) for run in (ours, definition))
    close(got, expected, 1e-12)


@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("length", LENGTHS)
def test_loud_values_in_float32(length: int, layout: str) -> None:
    segments, marks = marks_of(layout, length)
    x = inputs(length, 1000.0, torch.float32)
    before, last, total = loop(x.detach(), marks)
    rows = resolve(x, segments, None)
    got, state = running_log_sum(x, rows=rows, state=None)
    whole = segment_log_sum(x, rows=rows)
    for one, other in ((got, before), (state, last), (whole, total)):
        one = real(one, segments) if one.dim() == 3 else one
        other = real(other, segments) if other.dim() == 3 else other
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    (got.sum() + state.sum() + whole.sum()).backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("length", LENGTHS)
def test_cut_anywhere_gives_the_same(length: int, layout: str) -> None:
    segments, _ = marks_of(layout, length)
    x = inputs(length, 1000.0, torch.float64).detach()
    whole, last = running_log_sum(x, rows=resolve(x, segments, None), state=None)
    for cuts in (random_cuts(length), list(range(1, length + 1))):
        pieces, state = in_pieces(running_log_sum, [x], segments, cuts)
        close(real(pieces, segments), real(whole, segments), 1e-13)
        close(state, last, 1e-13)


def test_half_precision_is_summed_in_float32() -> None:
    x = torch.zeros(1, 1000, 1, dtype=torch.bfloat16)
    before, z = running_log_sum(x, rows=resolve(x, None, None), state=None)
    whole = segment_log_sum(x, rows=resolve(x, None, None))
    assert before.dtype == z.dtype == whole.dtype == torch.float32
    torch.testing.assert_close(z.exp(), torch.full((1, 1), 1001.0))
    torch.testing.assert_close(whole[0, 0].exp(), torch.tensor([1001.0]))
