"""The attention kernel against a sum over pairs of tokens: windows, groups, segments, cuts, both directions."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from paribus.nn.kernels.attention import attention
from paribus.nn.segments import resolve
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, random_segments, real, with_gradients

HEADS, SCALE = 4, 0.6


def tokens(length: int, groups: int = HEADS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q [3, T, 4, 3], k [3, T, G, 3], v [3, T, G, 2]."""
    draw = torch.Generator().manual_seed(length)
    shapes = ((HEADS, 3), (groups, 3), (groups, 2))
    made = [2 * torch.randn(3, length, *shape, generator=draw, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def segments_of(kind: str, length: int) -> Tensor | None:
    return random_segments(3, length, seed=length) if kind == "segments" else None


def by_pairs(q: Tensor, k: Tensor, v: Tensor, ids: Tensor, causal: bool, window: int) -> Tensor:
    """The definition, one query and one head at a time; padding answers zero."""
    o = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)
    share = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            mine = [s for s in range(q.shape[1]) if ids[b, s] == ids[b, t] and ids[b, t]]
            seen = [s for s in mine if s <= t or not causal]
            if window:
                seen = [s for s in seen if abs(mine.index(s) - mine.index(t)) < window]
            for h in range(q.shape[2] if seen else 0):
                weights = (SCALE * k[b, seen, h // share] @ q[b, t, h]).softmax(0)
                o[b, t, h] = weights @ v[b, seen, h // share]
    return o


@pytest.mark.parametrize("algorithm", ["fast", "reference"])
@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize(("groups", "window"), [(4, 0), (2, 0), (1, 3), (4, 1)])
@pytest.mark.parametrize("causal", [True, False])
def test_equals_the_definition(algorithm: str, kind: str, groups: int, window: int, causal: bool) -> None:
    inputs, segments = tokens(19, groups), segments_of(kind, 19)
    ids = torch.ones(3, 19) if segments is None else segments
    run = partial(attention, causal=causal, scale=SCALE, window=window, algorithm=algorithm)
    o, _ = run(*inputs, rows=resolve(inputs[0], segments, None), state=None)
    close(real(o, segments), by_pairs(*inputs, ids, causal, window), 1e-12)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 2, 65])
def test_gradients_equal_the_references(length: int, causal: bool, window: int, kind: str) -> None:
    inputs, segments = tokens(length, groups=2), segments_of(kind, length)
    fast, exact = (
        with_gradients(
            partial(attention, causal=causal, scale=SCALE, window=window, algorithm=algorithm), inputs, [], segments
        )
        for algorithm in ("fast", "reference")
    )
    close(fast, exact, 1e-12)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("window", [0, 1, 2, 7])
@pytest.mark.parametrize("length", [2, 30])
def test_any_cut_gives_the_same(length: int, window: int, kind: str) -> None:
    inputs, segments = tokens(length, groups=2), segments_of(kind, length)
    run = partial(attention, causal=True, scale=SCALE, window=window)
    whole, _ = run(*inputs, rows=resolve(inputs[0], segments, None), state=None)
    for cuts in (random_cuts(length), list(range(1, length + 1))):
        pieces, _ = in_pieces(run, inputs, segments, cuts)
        close(real(pieces, segments), real(whole, segments), 1e-12)


@pytest.mark.parametrize("window", [1, 2, 8])
def test_a_window_bounds_the_history(window: int) -> None:
    inputs = tokens(40)
    run = partial(attention, causal=True, scale=SCALE, window=window)
    _, history = run(*inputs, rows=resolve(inputs[0], random_segments(3, 40), None), state=None)
    assert history.keys.shape[1] == max(window - 1, 1)


def test_half_precision_and_strong_scores() -> None:
    q, k, v = (tensor.detach() for tensor in tokens(20, dtype=torch.bfloat16))
    o, _ = attention(100 * q, 100 * k, v, rows=resolve(q, None, None), state=None, causal=True, scale=SCALE)
    assert o.dtype == torch.bfloat16
    assert o.isfinite().all()


def test_an_unknown_algorithm_is_named() -> None:
    q, k, v = tokens(2)
    with pytest.raises(ValueError, match=r"unknown attention algorithm 'fas'; did you mean 'fast'\?"):
        attention(q, k, v, rows=resolve(q, None, None), state=None, causal=True, scale=1.0, algorithm="fas")
