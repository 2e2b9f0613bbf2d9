"""The two-level scan against the step-by-step definition."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.nn.kernels.cost import FlopCounter
from paribus.nn.kernels.scan import scan
from paribus.nn.segments import Past, resolve
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, random_segments, real, with_gradients

LENGTHS = [1, 7, 63, 65, 200]


def inputs(length: int, dtype: torch.dtype = torch.float64, strength: float = 1.0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(length)
    x = torch.randn(3, length, 5, generator=draw, dtype=torch.float64)
    log_decay = -strength * torch.rand(3, length, 5, generator=draw, dtype=torch.float64)
    return [
        x.to(dtype).requires_grad_(),
        log_decay.to(torch.promote_types(dtype, torch.float32)).requires_grad_(),
    ]


def segments_of(kind: str, length: int) -> Tensor | None:
    return random_segments(3, length) if kind == "segments" else None


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [*LENGTHS, 1000])
def test_equals_the_reference(length: int, causal: bool, kind: str) -> None:
    tensors, segments = inputs(length), segments_of(kind, length)
    fast = with_gradients(partial(scan, causal=causal), tensors, [], segments)
    exact = with_gradients(partial(scan, causal=causal, algorithm="reference"), tensors, [], segments)
    close(fast, exact, 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_float32_is_near_the_reference(causal: bool) -> None:
    tensors, segments = inputs(200, torch.float32), random_segments(3, 200)
    fast = with_gradients(partial(scan, causal=causal), tensors, [], segments)
    exact = with_gradients(partial(scan, causal=causal, algorithm="reference"), tensors, [], segments)
    close(fast, exact, 2e-6)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("length", LENGTHS)
def test_any_cut_gives_the_same(length: int, kind: str) -> None:
    tensors, segments = inputs(length), segments_of(kind, length)
    run = partial(scan, causal=True)
    whole, state = run(*tensors, rows=resolve(tensors[0], segments, None), state=None)
    pieces, last = in_pieces(run, tensors, segments, random_cuts(length))
    close([real(pieces, segments), last], [real(whole, segments), state], 1e-12)
    gradients = [torch.autograd.grad(real(y, segments).square().sum(), tensors) for y in (pieces, whole)]
    close(gradients[0], gradients[1], 1e-12)


def test_padding_is_invisible() -> None:
    x, log_decay = (t.detach() for t in inputs(30))
    keep = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:20].sort().values
    segments = torch.zeros(3, 30, dtype=torch.long)
    segments[:, keep] = 1
    for causal in (True, False):
        padded = x.masked_fill((segments == 0)[..., None], float("nan"))
        y, state = scan(padded, log_decay, rows=resolve(x, segments, None), state=None, causal=causal)
        without = (x[:, keep], log_decay[:, keep])
        expected = scan(*without, rows=resolve(x[:, keep], None, None), state=None, causal=causal)
        close([y[:, keep], state], expected, 1e-12)


def test_two_directions_count_every_token_once() -> None:
    x, log_decay = inputs(9)
    y, state = scan(x, log_decay, rows=resolve(x, None, None), state=None, causal=False)
    summed = torch.cat([torch.zeros(3, 1, 5), log_decay.cumsum(1)], 1)[:, 1:]
    distance = (summed[:, :, None] - summed[:, None]).abs()  # B T T E, of all decays between two tokens
    close(y, ((-distance).exp() * x[:, None]).sum(2), 1e-12)
    assert state is None


def test_strong_decay_is_exact() -> None:
    x, log_decay = inputs(200, strength=1e-3)
    log_decay = torch.where(torch.rand(log_decay.shape) < 0.3, -50.0, log_decay).detach().requires_grad_()
    log_decay.data[0, 50:120] = -1e4
    fast = with_gradients(partial(scan, causal=True), [x, log_decay], [], None)
    exact = with_gradients(partial(scan, causal=True, algorithm="reference"), [x, log_decay], [], None)
    close(fast, exact, 1e-12)
    assert all(torch.isfinite(t).all() for t in fast)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_by_differences(causal: bool, kind: str) -> None:
    x, log_decay = (t[:, :, :2] for t in inputs(11))
    state = torch.randn(3, 2, dtype=torch.float64)
    past = Past(torch.tensor([1, 1, 0]), torch.tensor([4, 2, 0])) if causal else None
    rows = resolve(x, segments_of(kind, 11), past)

    def answer(x: Tensor, log_decay: Tensor, state: Tensor | None = None) -> Tensor:
        y, last = scan(x, log_decay, rows=rows, state=state, causal=causal)
        return y if last is None else torch.cat([y, last[:, None]], 1)

    leaves = [x, log_decay, state] if causal else [x, log_decay]
    assert torch.autograd.gradcheck(answer, [leaf.detach().requires_grad_() for leaf in leaves])


def complex_inputs(length: int, dtype: torch.dtype) -> list[Tensor]:
    """Pairs of real numbers [B, T, E, 2], so that tests weigh both parts."""
    x, log_decay = torch.randn(3, length, 5, 2, dtype=dtype), torch.randn(3, length, 5, 2, dtype=dtype)
    log_decay[..., 0] = -log_decay[..., 0].abs()
    return [x.requires_grad_(), log_decay.requires_grad_()]


def complex_scan(x: Tensor, log_decay: Tensor, *, state: Tensor | None, **options: Any) -> tuple[Tensor, Tensor | None]:
    state = None if state is None else torch.view_as_complex(state)
    h, last = scan(torch.view_as_complex(x), torch.view_as_complex(log_decay), state=state, **options)
    return torch.view_as_real(h), None if last is None else torch.view_as_real(last)


@pytest.mark.parametrize("kind", ["plain", "segments"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_complex_numbers_equal_the_reference(length: int, causal: bool, kind: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        tensors, segments = complex_inputs(length, dtype), segments_of(kind, length)
        fast = with_gradients(partial(complex_scan, causal=causal), tensors, [], segments)
        exact = with_gradients(partial(complex_scan, causal=causal, algorithm="reference"), tensors, [], segments)
        close(fast, exact, tolerance)


def test_complex_numbers_in_pieces() -> None:
    tensors, segments = complex_inputs(65, torch.float64), random_segments(3, 65)
    run = partial(complex_scan, causal=True)
    whole, state = run(*tensors, rows=resolve(tensors[0], segments, None), state=None)
    pieces, last = in_pieces(run, tensors, segments, random_cuts(65))
    close([real(pieces, segments), last], [real(whole, segments), state], 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_complex_gradients_by_differences(causal: bool) -> None:
    leaves = complex_inputs(8, torch.float64)
    rows = resolve(leaves[0], random_segments(3, 8), None)
    assert torch.autograd.gradcheck(
        lambda x, log_decay: real(complex_scan(x, log_decay, rows=rows, state=None, causal=causal)[0], rows.ids), leaves
    )


def test_an_unknown_algorithm_is_refused() -> None:
    x, log_decay = inputs(3)
    with pytest.raises(ValueError, match="unknown algorithm 'two'; "):
        scan(x, log_decay, rows=resolve(x, None, None), state=None, causal=True, algorithm="two")


def test_bfloat16_accumulates_in_float32() -> None:
    x, log_decay = inputs(1000, torch.bfloat16, strength=0.01)
    rows = resolve(x, None, None)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = scan(x, log_decay, rows=rows, state=None, causal=True)
    exact, last = scan(x.double(), log_decay.double(), rows=rows, state=None, causal=True, algorithm="reference")
    assert y.dtype is torch.bfloat16
    assert state is not None
    assert state.dtype is torch.float32
    close([y.double(), state.double()], [exact, last], 5e-3)
    close(state.double(), last, 1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_nothing_leaks(causal: bool) -> None:
    x, log_decay = (t.detach() * scale for t, scale in zip(inputs(65), (100.0, 0.01), strict=True))
    changed = x.clone()
    changed[:, 40:] += 1000.0
    rows = resolve(x, None, None)
    one, other = (scan(t, log_decay, rows=rows, state=None, causal=causal)[0] for t in (x, changed))
    assert torch.equal(one[:, :40], other[:, :40]) is causal
    assert not torch.equal(one[:, 64], other[:, 64])


def test_state_is_never_changed_in_place_and_holds_no_sequence() -> None:
    x, log_decay = (t.detach() for t in inputs(65))
    _, state = scan(x, log_decay, rows=resolve(x, None, None), state=None, causal=True)
    assert state is not None
    before = state.clone()
    assert state.untyped_storage().nbytes() == state.nbytes
    past = Past(torch.ones(3, dtype=torch.long), torch.full((3,), 65))
    scan(x, log_decay, rows=resolve(x, None, past), state=state, causal=True)
    assert torch.equal(state, before)


def test_cost_is_two_a_pass() -> None:
    x, log_decay = inputs(65)
    with FlopCounter() as counter:
        y, _ = scan(x, log_decay, rows=resolve(x, None, None), state=None, causal=True)
        forward = counter.total
        y.sum().backward()
    assert forward == 2 * 3 * 65 * 5
    assert counter.total == 2 * forward


def test_works_without_data() -> None:
    x = torch.empty(2, 50, 4, device="meta")
    y, state = scan(x, x, rows=resolve(x, None, None), state=None, causal=True)
    assert y.is_meta
    assert y.shape == x.shape
    assert state is not None
    assert state.shape == (2, 4)
