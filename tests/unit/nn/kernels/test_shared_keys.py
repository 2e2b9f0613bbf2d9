"""The recurrence with shared keys is the recurrence with repeated ones: outputs, states, gradients, cut anywhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.nn.kernels.choice import Implementation, using
from paribus.nn.kernels.recurrence import recurrence
from paribus.nn.kernels.shared_keys import shared_recurrence
from paribus.nn.segments import resolve
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, random_segments, real, with_gradients

B, H, K, V = 3, 6, 4, 5
LENGTHS = [1, 7, 63, 65, 200]
Run = Callable[..., tuple[Tensor, Any]]


def inputs_of(length: int, groups: int, strength: float = 1.0) -> tuple[list[Tensor], Tensor]:
    """q, k, v and log-decays from -strength to 0, and a first state."""
    normal = partial(torch.randn, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    tokens = [normal(B, length, groups, K), normal(B, length, groups, K), normal(B, length, H, V)]
    tokens.append(-strength * normal(B, length, H).sigmoid())
    return [x.requires_grad_() for x in tokens], normal(B, H, K, V).requires_grad_()


def begin(kernel: Run, first: Tensor, causal: bool, **options: Any) -> Run:
    """The kernel from the state `first` wherever none is given; two-directional there is none."""

    def run(*tokens: Tensor, rows: Any, state: Any) -> tuple[Tensor, Any]:
        state = first if causal and state is None else state
        return kernel(*tokens, rows=rows, state=state, causal=causal, **options)

    return run


def repeated(q: Tensor, k: Tensor, *rest: Tensor, **options: Any) -> tuple[Tensor, Any]:
    """The definition."""
    q, k = (x.repeat_interleave(H // x.shape[2], 2) for x in (q, k))
    return recurrence(q, k, *rest, algorithm="reference", **options)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("length", LENGTHS)
def test_outputs_states_and_gradients_are_those_of_repeated_keys(
    length: int, groups: int, layout: str, causal: bool
) -> None:
    tokens, first = inputs_of(length, groups)
    segments = random_segments(B, length) if layout == "segments" else None
    expected = with_gradients(begin(repeated, first, causal), tokens, [first], segments)
    for algorithm in ("chunked", "reference"):
        ours = begin(shared_recurrence, first, causal, algorithm=algorithm)
        close(with_gradients(ours, tokens, [first], segments), expected, 1e-12)


def test_a_thousand_tokens_in_float32() -> None:
    tokens, first = inputs_of(1000, 2)
    expected = with_gradients(begin(repeated, first, True), tokens, [first], None)
    *quick, start = (x.detach().float().requires_grad_() for x in (*tokens, first))
    got = with_gradients(begin(shared_recurrence, start, True), quick, [start], None)
    close(got, [x.float() for x in expected], 1e-5)


@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("length", LENGTHS)
def test_cut_anywhere_gives_the_same(length: int, layout: str) -> None:
    tokens, first = inputs_of(length, 2)
    segments = random_segments(B, length) if layout == "segments" else None
    run = begin(shared_recurrence, first, True)
    whole, last = run(*tokens, rows=resolve(tokens[0], segments, None), state=None)
    for cuts in (random_cuts(length), list(range(1, length + 1))):
        pieces, state = in_pieces(run, tokens, segments, cuts)
        close(real(pieces, segments), real(whole, segments), 1e-12)
        close(state, last, 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_decays_of_every_strength_in_float32(causal: bool) -> None:
    """A strong decay beside weak ones: nothing cancels, overflows, or is lost of the weak ones after it."""
    tokens, first = inputs_of(130, 2)
    with torch.no_grad():
        tokens[3][:, ::3] *= 1e6
        tokens[3][:, 1::3] *= 1e-3
    expected = with_gradients(begin(repeated, first, causal), tokens, [first], None)
    *quick, start = (x.detach().float().requires_grad_() for x in (*tokens, first))
    got = with_gradients(begin(shared_recurrence, start, causal), quick, [start], None)
    close(got, [x.float() for x in expected], 1e-5)


def test_half_precision_is_computed_in_float32() -> None:
    tokens, _ = inputs_of(65, 2)
    half = [x.detach().bfloat16() for x in tokens[:3]]
    rows = resolve(half[0], None, None)
    o, state = shared_recurrence(*half, tokens[3].float(), rows=rows, state=None, causal=True)
    wide, _ = shared_recurrence(*(x.float() for x in half), tokens[3].float(), rows=rows, state=None, causal=True)
    assert o.dtype == torch.bfloat16 and state is not None and state.dtype == torch.float32
    assert torch.equal(o, wide.bfloat16())


def test_another_implementation_gets_repeated_keys() -> None:
    tokens, _ = inputs_of(9, 2)
    seen = []

    def spy(*arguments: Any, **options: Any) -> tuple[Tensor, Any]:
        seen.append([x.shape for x in arguments])
        return arguments[2], None

    with using(Implementation("spy", spy, spy)):
        shared_recurrence(*tokens, rows=resolve(tokens[0], None, None), state=None, causal=True)
    assert seen == [[(B, 9, H, K), (B, 9, H, K), (B, 9, H, V), (B, 9, H)]]


def test_an_unknown_algorithm_is_one_clear_line() -> None:
    tokens, _ = inputs_of(3, 2)
    with pytest.raises(ValueError, match="unknown algorithm 'chunky'; did you mean 'chunked'"):
        shared_recurrence(*tokens, rows=resolve(tokens[0], None, None), state=None, causal=True, algorithm="chunky")
