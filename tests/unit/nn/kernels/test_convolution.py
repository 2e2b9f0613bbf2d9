"""Short and long convolutions against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import paribus.nn.kernels.convolution as kernels
from paribus.nn.kernels.alignment import each_segment
from paribus.nn.kernels.convolution import convolution, dense_convolution, short_convolution
from paribus.nn.kernels.cost import FlopCounter
from paribus.nn.kernels.scan import scan
from paribus.nn.segments import Past, Rows, resolve
from paribus.nn.state import State
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, random_segments, real, with_gradients

LENGTHS = [1, 7, 63, 65, 200]
Taps = Callable[[int], Tensor]


def tokens(length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(length)
    return torch.randn(3, length, 4, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()


def table(most: int, causal: bool) -> tuple[Tensor, Taps]:
    """A leaf with one weight for each lag, and the function that cuts taps for n tokens out of it."""
    draw = torch.Generator().manual_seed(most)
    leaf = torch.randn(2 * most - 1, 4, generator=draw, dtype=torch.float64).requires_grad_()
    return leaf, lambda n: leaf[most - 1 if causal else most - n : most - 1 + n]


def segments_of(kind: str, length: int) -> Tensor | None:
    return random_segments(3, length) if kind == "segments" else None


SHORT = {"depthwise": short_convolution, "dense": dense_convolution}


def short_weight(kernel: str, width: int) -> Tensor:
    """[E, W], or [F, W, E] with another number of channels."""
    draw = torch.Generator().manual_seed(width)
    shape = (4, width) if kernel == "depthwise" else (3, width, 4)
    return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()


def by_definition(x: Tensor, weight: Tensor, *, rows: Rows, state: Tensor | None, causal: bool) -> tuple[Tensor, State]:
    """A short convolution of each segment alone, one output after another."""
    width = weight.shape[1]
    before = width - 1 if causal else width // 2

    def one(seen: Tensor) -> Tensor:
        if weight.dim() == 2:
            return (seen * weight.T).sum(0)
        return F.pad(torch.stack([weight[:, j] @ seen[j] for j in range(width)]).sum(0), (0, 4 - len(weight)))

    def compute(inputs: Tensor) -> Tensor:
        padded = torch.cat([inputs.new_zeros(before, 4), inputs, inputs.new_zeros(width - 1 - before, 4)])
        return torch.stack([one(padded[t : t + width]) for t in range(len(inputs))])

    y, history = each_segment(x, rows, state, compute)
    after = rows.after().position
    kept = [torch.cat([x.new_zeros(width - 1, 4), row[:n]])[n:] for row, n in zip(history, after.tolist(), strict=True)]
    return y[..., : len(weight)], torch.stack(kept) if causal else None


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("width", [1, 2, 4, 5])
@pytest.mark.parametrize("length", [1, 2, 7, 65])
@pytest.mark.parametrize("kernel", SHORT)
def test_short_is_its_definition(kernel: str, length: int, width: int, causal: bool, kind: str) -> None:
    x, segments, weight = tokens(length), segments_of(kind, length), short_weight(kernel, width)
    fast, exact = (
        with_gradients(partial(form, weight=weight, causal=causal), [x], [weight], segments)
        for form in (SHORT[kernel], by_definition)
    )
    close(fast, exact, 1e-12)


@pytest.mark.parametrize("kernel", SHORT)
def test_short_is_its_definition_at_length(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_CACHED", 300)  # blocks of 25 tokens
    x, segments, weight = tokens(1000), random_segments(3, 1000), short_weight(kernel, 4)
    for marks in (None, segments, segments.cummax(1).values.clamp(min=1)):
        fast, exact = (
            with_gradients(partial(form, weight=weight, causal=True), [x], [weight], marks)
            for form in (SHORT[kernel], by_definition)
        )
        close(fast, exact, 1e-12)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kernel", SHORT)
def test_short_in_pieces(kernel: str, length: int, kind: str) -> None:
    x, segments, weight = tokens(length), segments_of(kind, length), short_weight(kernel, 4)
    run = partial(SHORT[kernel], weight=weight, causal=True)
    whole = run(x, rows=resolve(x, segments, None), state=None)
    expected = torch.autograd.grad(whole[0].square().sum(), [x, weight])
    for cuts in (random_cuts(length), [*range(max(1, length - 5), length), length]):
        pieces = in_pieces(run, [x], segments, cuts)
        close(pieces, whole, 1e-12)
        close(list(torch.autograd.grad(pieces[0].square().sum(), [x, weight])), list(expected), 1e-12)


def test_diagonal_matrices_are_taps_of_channels() -> None:
    x, weight = tokens(65).detach(), short_weight("depthwise", 5).detach()
    for causal in (True, False):
        rows = resolve(x, random_segments(3, 65), None)
        depthwise, dense = (
            kernel(x, taps, rows=rows, state=None, causal=causal)
            for kernel, taps in (
                (short_convolution, weight),
                (dense_convolution, weight.T.diag_embed().permute(1, 0, 2)),
            )
        )
        close(dense, depthwise, 1e-12)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [*LENGTHS, 1000])
def test_long_equals_the_reference(length: int, causal: bool, kind: str) -> None:
    x, segments = tokens(length), segments_of(kind, length)
    leaf, taps = table(length, causal)
    fast, exact = (
        with_gradients(partial(convolution, taps=taps, causal=causal, algorithm=algorithm), [x], [leaf], segments)
        for algorithm in ("fft", "reference")
    )
    close(fast, exact, 1e-12)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("length", LENGTHS)
def test_long_in_pieces(length: int, kind: str) -> None:
    x, segments = tokens(length), segments_of(kind, length)
    _, taps = table(length, True)
    run = partial(convolution, taps=taps, causal=True)
    whole = run(x, rows=resolve(x, segments, None), state=None)
    for cuts in (random_cuts(length), [*range(max(1, length - 5), length), length]):
        pieces = in_pieces(run, [x], segments, cuts)
        close(pieces, whole, 1e-12)
        gradients = [torch.autograd.grad(y.square().sum(), x, retain_graph=True) for y in (pieces[0], whole[0])]
        close(gradients[0], gradients[1], 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_few_long_taps_are_a_short_convolution(causal: bool) -> None:
    x, weight = tokens(65).detach(), short_weight("depthwise", 5).detach()
    rows, none = resolve(x, random_segments(3, 65), None), torch.zeros(200, 4, dtype=torch.float64)

    def taps(n: int) -> Tensor:
        if causal:
            return torch.cat([weight.T.flip(0), none])[:n]
        return torch.cat([none, weight.T.flip(0), none])[203 - n : 202 + n]

    short, long = (
        run(x, rows=rows, state=None, causal=causal)[0]
        for run in (partial(short_convolution, weight=weight), partial(convolution, taps=taps))
    )
    close(long, short, 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_exponential_taps_are_a_scan(causal: bool) -> None:
    x = tokens(65).detach()
    log_decay = -torch.rand(4, dtype=torch.float64)
    rows = resolve(x, random_segments(3, 65), None)

    def taps(n: int) -> Tensor:
        lags = torch.arange(0 if causal else 1 - n, n, dtype=torch.float64)
        return (lags.abs()[:, None] * log_decay).exp()

    scanned, state = scan(x, log_decay.expand_as(x), rows=rows, state=None, causal=causal)
    y, history = convolution(x, taps, rows=rows, state=None, causal=causal)
    close(real(scanned, rows.ids), y, 1e-12)
    assert (state is None) is (history is None) is not causal


def test_two_sided_taps_read_what_lies_ahead() -> None:
    leaf, taps = table(5, False)
    x = torch.zeros(1, 5, 4, dtype=torch.float64)
    x[0, 3] = 1
    y, state = convolution(x, taps, rows=resolve(x, None, None), state=None, causal=False)
    close(y[0], leaf[1:6], 1e-12)  # the weight of lag -3 is at the start, that of lag 1 at the end
    assert state is None


def test_left_padded_rows_decode_without_segments() -> None:
    x = tokens(40).detach()
    _, taps = table(40, True)
    segments = torch.ones(3, 30, dtype=torch.long)
    for b, padding in enumerate((0, 7, 21)):
        segments[b, :padding] = 0
    for run in (
        partial(convolution, taps=taps, causal=True),
        *(partial(form, weight=short_weight(kernel, 4), causal=True) for kernel, form in SHORT.items()),
    ):
        rows = resolve(x[:, :30], segments, None)
        _, state = run(x[:, :30], rows=rows, state=None)
        past, outputs = rows.after(), []
        for start, end in ((30, 36), (36, 37), (37, 40)):
            rows = resolve(x[:, start:end], None, past)
            y, state = run(x[:, start:end], rows=rows, state=state)
            outputs.append(y)
            past = rows.after()
        for b, padding in enumerate((0, 7, 21)):
            alone = x[b : b + 1, padding:]
            expected, _ = run(alone, rows=resolve(alone, None, None), state=None)
            close(torch.cat(outputs, 1)[b], expected[0, -10:], 1e-12)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_by_differences(causal: bool, kind: str) -> None:
    x, length = tokens(7).detach()[:, :, :2].requires_grad_(), 7
    state = torch.randn(3, 2, 2, dtype=torch.float64).requires_grad_() if causal else None
    past = Past(torch.tensor([1, 1, 1]), torch.tensor([2, 2, 2])) if causal else None
    rows = resolve(x, segments_of(kind, length), past)
    leaf = torch.randn(17, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    matrices = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)

    def long(x: Tensor, leaf: Tensor, state: Tensor | None) -> Tensor:
        def taps(n: int) -> Tensor:
            return leaf[8 if causal else 9 - n : 8 + n]

        return convolution(x, taps, rows=rows, state=state, causal=causal)[0]

    def short(x: Tensor, weight: Tensor, state: Tensor | None) -> Tensor:
        return short_convolution(x, weight, rows=rows, state=state, causal=causal)[0]

    assert torch.autograd.gradcheck(long, (x, leaf, state))

    def dense(x: Tensor, weight: Tensor, state: Tensor | None) -> Tensor:
        return dense_convolution(x, weight, rows=rows, state=state, causal=causal)[0]

    assert torch.autograd.gradcheck(short, (x, weight, state))
    assert torch.autograd.gradcheck(dense, (x, matrices, state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_computes_in_float32(dtype: torch.dtype) -> None:
    x, (_, taps) = tokens(200, dtype), table(200, True)
    rows = resolve(x, random_segments(3, 200), None)
    weight = short_weight("depthwise", 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        y, history = convolution(x, taps, rows=rows, state=None, causal=True)
        short, _ = short_convolution(x, weight.float(), rows=rows, state=None, causal=True)
    exact, _ = convolution(x.double(), taps, rows=rows, state=None, causal=True, algorithm="reference")
    short_exact, _ = short_convolution(x.double(), weight, rows=rows, state=None, causal=True)
    assert history is not None
    assert y.dtype is history.dtype is short.dtype is dtype
    close(y.double(), exact, 4e-3 if dtype is torch.bfloat16 else 1e-6)
    close(short.double(), short_exact, 4e-3 if dtype is torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("automatic", [True, False])
def test_dense_is_as_precise_as_a_linear_map(automatic: bool) -> None:
    x = tokens(65).detach()
    weight = short_weight("dense", 5).detach()
    rows = resolve(x, random_segments(3, 65), None)
    exact, _ = dense_convolution(x, weight, rows=rows, state=None, causal=True)
    dtype = torch.float32 if automatic else torch.bfloat16
    inputs, leaf = x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
        y, state = dense_convolution(inputs, leaf, rows=rows, state=None, causal=True)
    assert y.dtype is torch.bfloat16
    assert state is not None
    assert state.dtype is dtype
    close(y.double(), exact, 8e-3)
    gradients = torch.autograd.grad(y.float().square().sum(), (inputs, leaf))
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]


def test_dense_products_are_counted() -> None:
    x = torch.randn(2, 10, 4, requires_grad=True)
    weight = torch.randn(3, 5, 4, requires_grad=True)
    with FlopCounter() as counter:
        y, _ = dense_convolution(x, weight, rows=resolve(x, None, None), state=None, causal=True)
        places = 2 * (10 + 4) - 4  # the room before the second row is convolved too
        assert counter.total == 2 * places * 5 * 3 * 4
        y.sum().backward()
    assert counter.total == 3 * 2 * places * 5 * 3 * 4


@pytest.mark.parametrize("causal", [True, False])
def test_nothing_leaks(causal: bool) -> None:
    x = tokens(65).detach()
    _, taps = table(65, causal)
    changed = x.clone()
    changed[:, 40:] += 100.0
    rows = resolve(x, None, None)
    for run in (
        partial(convolution, taps=lambda n: 100 * taps(n)),
        *(partial(form, weight=100 * short_weight(kernel, 4)) for kernel, form in SHORT.items()),
    ):
        one, other = (run(t, rows=rows, state=None, causal=causal)[0] for t in (x, changed))
        before = (one - other)[:, :40].abs().max().item()
        after = (one - other)[:, 40:].abs().max().item()
        assert (before < 1e-12 * after) is causal
        assert after > 1


def test_padding_is_never_read() -> None:
    x, segments = tokens(65).detach(), random_segments(3, 65)
    segments[2] = 0
    garbage = x.masked_fill((segments == 0)[..., None], float("nan"))
    for causal in (True, False):
        _, taps = table(65, causal)
        short = [partial(form, weight=short_weight(kernel, 5)) for kernel, form in SHORT.items()]
        for run in (partial(convolution, taps=taps), *short):
            y, _ = run(garbage, rows=resolve(x, segments, None), state=None, causal=causal)
            assert torch.isfinite(y).all()
            assert not y[segments == 0].any()


def test_works_without_data() -> None:
    x = torch.empty(2, 50, 4, device="meta")
    rows = resolve(x, None, None)
    y, _ = convolution(x, lambda n: x[0, :n], rows=rows, state=None, causal=True)
    short, _ = short_convolution(x, x[0, :3].T, rows=rows, state=None, causal=True)
    dense, _ = dense_convolution(x, x[:, :3], rows=rows, state=None, causal=True)
    assert y.shape == short.shape == x.shape
    assert dense.shape == (2, 50, 2)
