"""The matrix over tokens against its definition."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.nn.kernels.cost import FlopCounter
from paribus.nn.kernels.tokens import BLOCK, mix_tokens
from paribus.nn.segments import Past, resolve
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, random_segments, with_gradients


def tokens(length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(length)
    return torch.randn(3, length, 2, 3, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()


def matrix_of(bound: int) -> Tensor:
    draw = torch.Generator().manual_seed(bound)
    return torch.randn(2, bound, bound, generator=draw, dtype=torch.float64).requires_grad_()


def segments_of(kind: str, length: int) -> Tensor | None:
    return random_segments(3, length) if kind == "segments" else None


def own_rows(length: int, bound: int) -> Tensor:
    """A row of the matrix for each token, with twice as many matrices as x has heads."""
    draw = torch.Generator().manual_seed(bound)
    return torch.randn(3, length, 4, bound, generator=draw, dtype=torch.float64).requires_grad_()


Case = tuple[list[Tensor], list[Tensor], dict[str, Any]]
"""Tensors with tokens on dimension 1, other ones, and settings of `mix_tokens`."""


def case(entries: str, length: int, bound: int) -> Case:
    """Inputs for one way to give the entries: for all or by each token, as weights or as logits."""
    softmax = entries.endswith("logits")
    if entries.startswith("own"):
        return [tokens(length), own_rows(length, bound)], [], {"softmax": softmax}
    matrix = matrix_of(bound)
    return [tokens(length)], [matrix], {"matrix": matrix, "softmax": softmax}


ENTRIES = ["weights", "logits", "own weights", "own logits"]


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("entries", ENTRIES)
@pytest.mark.parametrize("length", [1, 7, 63, 65])
def test_equals_the_reference(length: int, entries: str, causal: bool, kind: str) -> None:
    inputs, others, settings = case(entries, length, 65)
    fast, exact = (
        with_gradients(
            partial(mix_tokens, causal=causal, algorithm=algorithm, **settings),
            inputs,
            others,
            segments_of(kind, length),
        )
        for algorithm in ("blocks", "reference")
    )
    close(fast, exact, 1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("entries", ENTRIES)
def test_several_blocks_equal_the_reference(entries: str, causal: bool) -> None:
    inputs, others, settings = case(entries, 2 * BLOCK + 45, 2 * BLOCK + 50)
    fast, exact = (
        with_gradients(partial(mix_tokens, causal=causal, algorithm=algorithm, **settings), inputs, others, None)
        for algorithm in ("blocks", "reference")
    )
    close(fast, exact, 1e-12)


def test_a_thousand_tokens() -> None:
    x, matrix = tokens(1000), matrix_of(1003)
    fast, exact = (
        with_gradients(partial(mix_tokens, matrix=matrix, causal=True, algorithm=algorithm), [x], [matrix], None)
        for algorithm in ("blocks", "reference")
    )
    close(fast, exact, 1e-12)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [200, 1000])
def test_long_rows_of_short_segments(length: int, causal: bool, softmax: bool) -> None:
    x, segments = tokens(length), torch.arange(length).expand(3, length) // 19 + 1
    segments = segments.masked_fill(torch.rand(3, length) < 0.2, 0)
    matrix = matrix_of(19)
    run = partial(mix_tokens, matrix=matrix, causal=causal, softmax=softmax)
    fast, exact = (
        with_gradients(partial(run, algorithm=algorithm), [x], [matrix], segments)
        for algorithm in ("blocks", "reference")
    )
    close(fast, exact, 1e-12)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("entries", ENTRIES)
@pytest.mark.parametrize("length", [1, 7, 63, 200])
def test_any_cut_gives_the_same(length: int, entries: str, kind: str) -> None:
    inputs, others, settings = case(entries, length, 200)
    segments, run = segments_of(kind, length), partial(mix_tokens, causal=True, **settings)
    whole = run(*inputs, rows=resolve(inputs[0], segments, None), state=None)
    for cuts in (random_cuts(length), [*range(max(1, length - 5), length), length]):
        pieces = in_pieces(run, inputs, segments, cuts)
        close(pieces, whole, 1e-12)
        gradients = [
            torch.autograd.grad(y.square().sum(), [*inputs, *others], retain_graph=True) for y in (pieces[0], whole[0])
        ]
        close(gradients[0], gradients[1], 1e-12)


@pytest.mark.parametrize("entries", ["weights", "logits"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_head_may_go_through_several_matrices(causal: bool, entries: str) -> None:
    x, matrix, segments = tokens(65), torch.randn(6, 65, 65, dtype=torch.float64), random_segments(3, 65)
    run = partial(mix_tokens, causal=causal, softmax=entries == "logits")
    for ids in (None, segments):
        rows = resolve(x, ids, None)
        y, _ = run(x, matrix, rows=rows, state=None)
        assert y.shape == (3, 65, 6, 3)
        for g in range(6):
            alone, _ = run(x[:, :, g // 3][:, :, None], matrix[g : g + 1], rows=rows, state=None)
            close(y[:, :, g], alone[:, :, 0], 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_logits_of_any_size(causal: bool) -> None:
    x, segments = tokens(65), random_segments(3, 65)
    for entries in (1e4 * matrix_of(65), 1e4 * own_rows(65, 65)):
        for ids in (None, segments):
            y, _ = mix_tokens(x, entries, rows=resolve(x, ids, None), state=None, causal=causal, softmax=True)
            assert torch.isfinite(y).all()
            assert y.abs().max() <= x.abs().max()
            assert torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all()


def test_left_padded_rows_decode_without_segments() -> None:
    x, matrix = tokens(40).detach(), matrix_of(40)
    segments = torch.ones(3, 30, dtype=torch.long)
    for b, padding in enumerate((0, 7, 21)):
        segments[b, :padding] = 0
    rows = resolve(x[:, :30], segments, None)
    _, state = mix_tokens(x[:, :30], matrix, rows=rows, state=None, causal=True)
    past, outputs = rows.after(), []
    for start, end in ((30, 36), (36, 37), (37, 40)):
        rows = resolve(x[:, start:end], None, past)
        y, state = mix_tokens(x[:, start:end], matrix, rows=rows, state=state, causal=True)
        outputs.append(y)
        past = rows.after()
    for b, padding in enumerate((0, 7, 21)):
        alone = x[b : b + 1, padding:]
        expected, _ = mix_tokens(alone, matrix, rows=resolve(alone, None, None), state=None, causal=True)
        close(torch.cat(outputs, 1)[b], expected[0, -10:], 1e-12)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_by_differences(causal: bool, kind: str) -> None:
    x, matrix = tokens(5).detach().requires_grad_(), matrix_of(7)
    state = torch.randn(3, 2, 2, 3, dtype=torch.float64).requires_grad_() if causal else None
    past = Past(torch.tensor([1, 1, 1]), torch.tensor([2, 2, 2])) if causal else None
    rows = resolve(x, segments_of(kind, 5), past)

    def answer(x: Tensor, matrix: Tensor, state: Tensor | None) -> Tensor:
        return mix_tokens(x, matrix, rows=rows, state=state, causal=causal)[0]

    assert torch.autograd.gradcheck(answer, (x, matrix, state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    x, matrix = tokens(65, dtype), matrix_of(65)
    rows = resolve(x, random_segments(3, 65), None)
    y, history = mix_tokens(x, matrix, rows=rows, state=None, causal=True)
    exact, _ = mix_tokens(x, matrix, rows=rows, state=None, causal=True, algorithm="reference")
    assert history is not None
    assert y.dtype is history.dtype is dtype
    close(y, exact, 4e-3 if dtype is torch.bfloat16 else 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = mix_tokens(x, matrix, rows=rows, state=None, causal=True)
    assert y.dtype is dtype
    close(y, exact, 2e-2)


@pytest.mark.parametrize("causal", [True, False])
def test_nothing_leaks(causal: bool) -> None:
    x, matrix = tokens(65).detach(), 100 * matrix_of(65).detach()
    changed = x.clone()
    changed[:, 40:] += 1000.0
    rows = resolve(x, None, None)
    one, other = (mix_tokens(t, matrix, rows=rows, state=None, causal=causal)[0] for t in (x, changed))
    assert torch.equal(one[:, :40], other[:, :40]) is causal
    assert not torch.equal(one[:, 64], other[:, 64])


def test_padding_is_never_read() -> None:
    x, segments = tokens(65).detach(), random_segments(3, 65)
    segments[2] = 0
    garbage = x.masked_fill((segments == 0)[..., None, None], float("nan"))
    for causal in (True, False):
        rows = resolve(x, segments, None)
        y, _ = mix_tokens(garbage, matrix_of(65), rows=rows, state=None, causal=causal)
        assert torch.isfinite(y).all()
        assert not y[segments == 0].any()


def test_longer_than_the_matrix_is_refused() -> None:
    x, matrix = tokens(7), matrix_of(6)
    with pytest.raises(ValueError, match="7 tokens is longer than the 6"):
        mix_tokens(x, matrix, rows=resolve(x, None, None), state=None, causal=True)
    rows = resolve(x[:, :6], None, None)
    _, state = mix_tokens(x[:, :6], matrix, rows=rows, state=None, causal=True)
    last = resolve(x[:, 6:], None, rows.after())
    with pytest.raises(ValueError, match="7 tokens is longer than the 6"):
        mix_tokens(x[:, 6:], matrix, rows=last, state=state, causal=True)
    split = torch.tensor([[1, 1, 1, 2, 2, 2, 2]]).expand(3, 7)
    mix_tokens(x, matrix, rows=resolve(x, split, None), state=None, causal=True)


def test_works_without_data() -> None:
    x = torch.empty(2, 50, 2, 4, device="meta")
    matrix = torch.empty(2, 64, 64, device="meta")
    y, state = mix_tokens(x, matrix, rows=resolve(x, None, None), state=None, causal=True)
    assert y.shape == x.shape
    assert state is x


def test_the_upper_triangle_is_neither_read_nor_multiplied() -> None:
    n, blocks = 4 * BLOCK, 4
    x, matrix = tokens(n).detach().requires_grad_(), matrix_of(n)
    upper = torch.ones(n, n).triu(1).bool()
    broken = matrix.detach().masked_fill(upper, float("nan")).requires_grad_()
    rows = resolve(x, None, None)
    with FlopCounter() as counter:
        y, _ = mix_tokens(x, broken, rows=rows, state=None, causal=True)
        forward = counter.total
        y.sum().backward()
    assert forward == 3 * x[0].numel() * 2 * n * (blocks + 1) // (2 * blocks)
    assert counter.total == 3 * forward
    assert broken.grad is not None
    assert torch.isfinite(broken.grad).all()
    assert not broken.grad[:, upper].any()
    close(y, mix_tokens(x, matrix, rows=rows, state=None, causal=True)[0], 1e-12)


def test_unknown_algorithm_is_refused() -> None:
    x = tokens(4)
    with pytest.raises(ValueError, match="unknown algorithm 'block'; did you mean 'blocks'"):
        mix_tokens(x, matrix_of(4), rows=resolve(x, None, None), state=None, causal=True, algorithm="block")
