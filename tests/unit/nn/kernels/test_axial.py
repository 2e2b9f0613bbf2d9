"""Maps along the axes of folded positions against their definition."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.evaluation.contract.subjects import MIXER, agree, build
from paribus.evaluation.contract.subjects import tokens as inputs_of
from paribus.nn.kernels.axial import Axis, mix_axis, whole_matrix
from paribus.nn.kernels.tokens import mix_tokens
from paribus.nn.segments import resolve
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, random_segments, with_gradients

AXES: tuple[Axis, ...] = ("column", "row", "window")


def tokens(length: int) -> Tensor:
    draw = torch.Generator().manual_seed(length)
    return torch.randn(3, length, 2, 3, generator=draw, dtype=torch.float64).requires_grad_()


def case(axis: Axis, longest: int, period: int) -> tuple[Tensor, partial[Any]]:
    """A matrix and the kernel that has it."""
    size = -(-longest // period) if axis == "column" else period
    matrix = torch.randn(2, size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    matrix.requires_grad_()
    return matrix, partial(mix_axis, matrix=matrix, axis=axis, period=period, longest=longest)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("length", "period"), [(1, 8), (7, 3), (63, 8), (65, 8), (65, 100), (65, 1)])
def test_equals_the_reference(length: int, period: int, axis: Axis, causal: bool, kind: str) -> None:
    x, segments = tokens(length), random_segments(3, length) if kind == "segments" else None
    matrix, run = case(axis, 65, period)
    fast, exact = (
        with_gradients(partial(run, causal=causal, algorithm=algorithm), [x], [matrix], segments)
        for algorithm in ("folded", "reference")
    )
    close(fast, exact, 1e-12)


@pytest.mark.parametrize("axis", AXES)
def test_a_thousand_tokens(axis: Axis) -> None:
    x = tokens(1000)
    matrix, run = case(axis, 1024, 32)
    fast, exact = (
        with_gradients(partial(run, causal=True, algorithm=algorithm), [x], [matrix], None)
        for algorithm in ("folded", "reference")
    )
    close(fast, exact, 1e-12)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("length", [1, 7, 63, 65])
def test_any_cut_gives_the_same(length: int, axis: Axis, kind: str) -> None:
    x, segments = tokens(length), random_segments(3, length) if kind == "segments" else None
    matrix, run = case(axis, 65, 8)
    run = partial(run, causal=True)
    whole = run(x, rows=resolve(x, segments, None), state=None)
    for cuts in (random_cuts(length), [*range(max(1, length - 5), length), length]):
        pieces = in_pieces(run, [x], segments, cuts)
        close(pieces, whole, 1e-12)
        gradients = [
            torch.autograd.grad(y.square().sum(), (x, matrix), retain_graph=True) for y in (pieces[0], whole[0])
        ]
        close(gradients[0], gradients[1], 1e-12)


def test_what_is_read_by_hand() -> None:
    """Seven positions in rows of three."""

    def read(axis: Axis, causal: bool) -> list[list[int]]:
        matrix = torch.ones(1, 3, 3)
        return [line.nonzero()[:, 0].tolist() for line in whole_matrix(matrix, axis, 7, 3, causal)[0]]

    assert read("column", True) == [[0], [1], [2], [0, 3], [1, 4], [2, 5], [0, 3, 6]]
    assert read("row", True) == [[0], [0, 1], [0, 1, 2], [3], [3, 4], [3, 4, 5], [6]]
    assert read("window", True) == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]]
    assert read("column", False) == [[0, 3, 6], [1, 4], [2, 5]] * 2 + [[0, 3, 6]]
    assert read("row", False) == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 3 + [[6]]
    assert read("window", False) == [[0, 1, 2]] * 3 + [[1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("axis", AXES)
def test_equals_the_whole_matrix(axis: Axis, causal: bool) -> None:
    x, segments = tokens(65), random_segments(3, 65)
    matrix, run = case(axis, 65, 8)
    whole = whole_matrix(matrix, axis, 65, 8, causal)
    for ids in (None, segments):
        rows = resolve(x, ids, None)
        y, _ = run(x, rows=rows, state=None, causal=causal)
        close(y, mix_tokens(x, whole, rows=rows, state=None, causal=causal)[0], 1e-12)


@pytest.mark.parametrize(("length", "period"), [(9, 3), (23, 5), (30, 4), (30, 7)])
def test_columns_and_a_window_read_every_token_once(length: int, period: int) -> None:
    size = -(-length // period)
    column = whole_matrix(torch.ones(1, size, size), "column", length, period, True)[0]
    window = whole_matrix(torch.ones(1, period, period), "window", length, period, True)[0]
    assert torch.equal(window @ column, torch.ones(length, length).tril())
    both = [
        whole_matrix(torch.ones(1, n, n), axis, length, period, False)[0]
        for axis, n in (("window", period), ("column", size))
    ]
    assert torch.equal(both[0] @ both[1], torch.ones(length, length))


def test_longer_than_permitted_is_refused() -> None:
    x = tokens(7)
    for axis in AXES:
        _, run = case(axis, 6, 3)
        with pytest.raises(ValueError, match="7 tokens is longer than the 6"):
            run(x, rows=resolve(x, None, None), state=None, causal=True)
    with pytest.raises(ValueError, match="unknown algorithm"):
        run(x[:, :6], rows=resolve(x[:, :6], None, None), state=None, causal=True, algorithm="fold")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("settings", [{}, {"preset": "olmax"}, {"preset": "rows", "period": 4}])
def test_the_mixer_is_two_maps(settings: dict[str, Any], causal: bool) -> None:
    settings = {"num_heads": 2, **settings}
    mixer = build(MIXER, "axial_mlp_mixer", width=8, longest=23, causal=causal, loud=True, settings=settings)
    x, y = inputs_of(1, 21, width=8), inputs_of(1, 21, width=8)
    period = settings.get("period", 5)
    columns = -(-23 // period)
    local = ("window", period) if not settings.get("preset") else ("row", columns)
    plan = [local, local] if settings.get("preset") == "olmax" else [("column", period), local]
    for which, (axis, size) in enumerate(plan):
        whole = whole_matrix((mixer.first, mixer.second)[which], axis, 21, size, causal)
        y = torch.einsum("hij,bjhv->bihv", whole, y.unflatten(2, (2, -1)))
        if causal and mixer.config.row_scale:
            read = (whole_matrix(torch.ones(1, 23, 23), axis, 21, size, True)[0]).sum(1)
            y = y * ((columns if axis == "column" else size) / read.double()).sqrt()[:, None, None]
        y = y.flatten(2)
        if which == 0:
            y = torch.nn.functional.leaky_relu(y if mixer.norm is None else mixer.norm(y))
    agree("axial", mixer(x)[0], y, 1e-12)
