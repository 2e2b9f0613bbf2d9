"""Averages over tokens against their definition."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.nn.kernels.averages import BLOCK, running_average, table_average
from paribus.nn.segments import resolve
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, random_segments, with_gradients

LENGTHS = [1, 7, 63, 65]


def pair(length: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Keys and values."""
    draw = torch.Generator().manual_seed(length)
    both = [torch.randn(3, length, 4, generator=draw, dtype=torch.float64) for _ in range(2)]
    return [(scale * t).to(dtype).requires_grad_() for t in both]


def table_of(bound: int) -> Tensor:
    return torch.randn(
        bound, bound, generator=torch.Generator().manual_seed(bound), dtype=torch.float64
    ).requires_grad_()


def segments_of(kind: str, length: int) -> Tensor | None:
    return random_segments(3, length) if kind == "segments" else None


def case(kernel: str, bound: int) -> tuple[list[Tensor], partial[Any]]:
    """What else has a gradient, and the kernel."""
    if kernel == "running":
        return [], partial(running_average)
    table = table_of(bound)
    return [table], partial(table_average, table=table)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", ["running", "table"])
@pytest.mark.parametrize("length", [*LENGTHS, 300])
def test_equals_the_reference(length: int, kernel: str, causal: bool, kind: str) -> None:
    others, run = case(kernel, max(65, length))
    inputs, segments = pair(length), segments_of(kind, length)
    fast, exact = (
        with_gradients(partial(run, causal=causal, algorithm=algorithm), inputs, others, segments)
        for algorithm in ("fast", "reference")
    )
    close(fast, exact, 1e-11)


@pytest.mark.parametrize("length", LENGTHS)
def test_two_ways_to_the_running_average(length: int) -> None:
    inputs = pair(length)
    for segments in (None, random_segments(3, length)):
        rows = resolve(inputs[0], segments, None)
        for causal in (True, False):
            one, _ = running_average(*inputs, rows=rows, state=None, causal=causal)
            table = torch.zeros(length, length, dtype=torch.float64)
            other, _ = table_average(*inputs, table, rows=rows, state=None, causal=causal)
            real = rows.ids != 0
            close(one[real], other[real], 1e-12)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("kernel", ["running", "table"])
@pytest.mark.parametrize("length", [*LENGTHS, 150])
def test_any_cut_gives_the_same(length: int, kernel: str, kind: str) -> None:
    others, run = case(kernel, 150)
    run, inputs, segments = partial(run, causal=True), pair(length), segments_of(kind, length)
    real = torch.ones(3, length).bool() if segments is None else segments != 0
    whole, _ = run(*inputs, rows=resolve(inputs[0], segments, None), state=None)
    for cuts in (random_cuts(length), [*range(max(1, length - 5), length), length]):
        pieces, _ = in_pieces(run, inputs, segments, cuts)
        close(pieces[real], whole[real], 1e-12)
        gradients = [
            torch.autograd.grad(y[real].square().sum(), [*inputs, *others], retain_graph=True) for y in (pieces, whole)
        ]
        close(gradients[0], gradients[1], 1e-12)


def test_rows_of_the_table_suffice_behind_a_state() -> None:
    (k, v), table = pair(40), table_of(40)
    _, state = table_average(k[:, :30], v[:, :30], table, rows=resolve(k[:, :30], None, None), state=None, causal=True)
    rows = resolve(k[:, 30:], None, resolve(k[:, :30], None, None).after())
    run = partial(table_average, k[:, 30:], v[:, 30:], rows=rows, state=state, causal=True)
    close(run(table[rows.positions])[0], run(table)[0], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", ["running", "table"])
def test_keys_of_any_size(kernel: str, causal: bool, dtype: torch.dtype) -> None:
    length = 3 * BLOCK + 5
    others, run = case(kernel, length)
    for segments in (None, random_segments(3, length)):
        inputs = pair(length, 1000.0, dtype)
        rows = resolve(inputs[0], segments, None)
        y, _ = run(*inputs, rows=rows, state=None, causal=causal)
        assert y.dtype is dtype
        real = rows.ids != 0
        exact, _ = run(*inputs, rows=rows, state=None, causal=causal, algorithm="reference")
        # a sum of key and entry is rounded at 4,000, which moves its exponential by as much
        close(y[real], exact[real], 1e-2 if dtype is torch.bfloat16 else 4000 * torch.finfo(dtype).eps)
        gradients = torch.autograd.grad(y[real].float().mean(), [*inputs, *others])
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_falling_keys_are_not_forgotten() -> None:
    """Relative to the first key of the row, all others are nothing."""
    k = (-200.0 * torch.arange(3 * BLOCK)).view(1, -1, 1).requires_grad_()
    v = torch.randn(1, 3 * BLOCK, 1, requires_grad=True)
    segments = torch.arange(3 * BLOCK)[None] // 2 + 1
    for kernel in ("running", "table"):
        _, run = case(kernel, 3 * BLOCK)
        for causal in (True, False):
            y, _ = run(k, v, rows=resolve(k, segments, None), state=None, causal=causal)
            close(y[0, ::2], v[0, ::2], 1e-6)
            state, past = None, None
            for t in range(6 if causal else 0):
                rows = resolve(k[:, t : t + 1], segments[:, t : t + 1], past)
                one, state = run(k[:, t : t + 1], v[:, t : t + 1], rows=rows, state=state, causal=True)
                close(one[:, 0], y[:, t], 1e-6)
                past = rows.after()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", ["running", "table"])
def test_padding_is_never_read(kernel: str, causal: bool) -> None:
    (k, v), segments = pair(65), random_segments(3, 65)
    segments[2] = 0
    garbage = [t.masked_fill((segments == 0)[..., None], float("nan")).detach().requires_grad_() for t in (k, v)]
    others, run = case(kernel, 65)
    y, _ = run(*garbage, rows=resolve(k, segments, None), state=None, causal=causal)
    assert torch.isfinite(y).all()
    clean, _ = run(k, v, rows=resolve(k, segments, None), state=None, causal=causal)
    close(y[segments != 0], clean[segments != 0], 1e-12)
    for gradient in torch.autograd.grad(y.sum(), [*garbage, *others]):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kernel", ["running", "table"])
def test_gradients_by_differences(kernel: str) -> None:
    others, _ = case(kernel, BLOCK + 2)
    inputs = [t[:1, :, :2].detach().requires_grad_() for t in pair(BLOCK + 2)]
    rows = resolve(inputs[0], None, None)

    def answer(k: Tensor, v: Tensor, *table: Tensor) -> Tensor:
        kernel = partial(table_average, table=table[0]) if table else running_average
        return kernel(k, v, rows=rows, state=None, causal=True)[0]

    assert torch.autograd.gradcheck(answer, (*inputs, *others), fast_mode=True)


def test_what_is_refused() -> None:
    (k, v), rows = pair(7), resolve(pair(7)[0], None, None)
    for causal in (True, False):
        with pytest.raises(ValueError, match="7 tokens is longer than the 6"):
            table_average(k, v, table_of(6), rows=rows, state=None, causal=causal)
    with pytest.raises(ValueError, match="unknown algorithm"):
        running_average(k, v, rows=rows, state=None, causal=True, algorithm="slow")
