"""The chunked recurrence against the step-by-step definition, and both against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paribus.nn.kernels.cost import FlopCounter
from paribus.nn.kernels.recurrence import recurrence
from paribus.nn.segments import resolve
from tests.unit.nn.gated_cases import KINDS, LENGTHS, RECURRENCES, B, H, K, V, make_case, rows_of, segments_of
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, real, with_gradients


@pytest.mark.parametrize("kernel", RECURRENCES)
@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_reference(kernel: str, length: int, kind: str, causal: bool, layout: str) -> None:
    case, segments = make_case(kernel, kind, length), segments_of(layout, length)
    fast, exact = (
        with_gradients(case.run_from_state(causal=causal, algorithm=algorithm), case.tokens, case.others, segments)
        for algorithm in ("chunked", "reference")
    )
    close(fast, exact, 1e-12)


@pytest.mark.parametrize("kernel", RECURRENCES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.1, 50.0])
def test_float32_is_near_the_reference_at_any_strength(kernel: str, kind: str, strength: float) -> None:
    case = make_case(kernel, kind, 1000, strength)
    case32 = case.cast(torch.float32)
    fast = with_gradients(case32.run_from_state(causal=True), case32.tokens, case32.others, None)
    exact = with_gradients(case.run_from_state(causal=True, algorithm="reference"), case.tokens, case.others, None)
    close(fast, exact, 5e-6)


@pytest.mark.parametrize("kernel", RECURRENCES)
@pytest.mark.parametrize("kind", ["scalar", "channel"])
def test_decays_so_strong_that_they_underflow(kernel: str, kind: str) -> None:
    case = make_case(kernel, kind, 130, 50).cast(torch.float32)
    with torch.no_grad():
        case.tokens[3][:, 5:9] = -50.0
        case.tokens[3][:, 70] = -1000.0
    fast, exact = (
        with_gradients(case.run_from_state(causal=True, algorithm=algorithm), case.tokens, case.others, None)
        for algorithm in ("chunked", "reference")
    )
    assert all(answer.isfinite().all() for answer in fast)
    close(fast, exact, 2e-6)


@pytest.mark.parametrize("kernel", RECURRENCES)
@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 65, 200])
def test_any_cut_gives_the_same(kernel: str, length: int, kind: str, layout: str) -> None:
    case, segments = make_case(kernel, kind, length), segments_of(layout, length)
    run = case.run(causal=True)
    whole, state = run(*case.tokens, rows=resolve(case.tokens[0], segments, None), state=None)
    pieces, last = in_pieces(run, case.tokens, segments, random_cuts(length))
    close([real(pieces, segments), last], [real(whole, segments), state], 1e-12)
    gradients = [
        torch.autograd.grad(real(o, segments).square().sum(), case.tokens, allow_unused=True, materialize_grads=True)
        for o in (pieces, whole)
    ]
    close(gradients[0], gradients[1], 1e-11)


@pytest.mark.parametrize("kernel", RECURRENCES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_invisible(kernel: str, kind: str, causal: bool) -> None:
    case = make_case(kernel, kind, 100)
    keep = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:70].sort().values
    segments = torch.zeros(3, 100, dtype=torch.long)
    segments[:, keep] = 1
    run = case.run(causal=causal)
    o, state = run(*case.tokens, rows=resolve(case.tokens[0], segments, None), state=None)
    without = [x[:, keep] for x in case.tokens]
    expected = run(*without, rows=rows_of(without[0]), state=None)
    close([o[:, keep], state], list(expected), 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_two_directions_and_one_equal_the_explicit_matrix(causal: bool) -> None:
    q, k, v, log_decay = make_case("recurrence", "scalar", 90).tokens
    o, _ = recurrence(q, k, v, log_decay, rows=rows_of(q), state=None, causal=causal)
    close(o, explicit(q, k, v, log_decay[..., None], causal), 1e-12)
    channel = make_case("recurrence", "channel", 90).tokens[3]
    o, _ = recurrence(q, k, v, channel, rows=rows_of(q), state=None, causal=causal)
    close(o, explicit(q, k, v, channel, causal), 1e-12)


def explicit(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, causal: bool) -> Tensor:
    """(Q Kᵀ ⊙ exp(-|G_t - G_s|)) V, for each channel's G the running sum of its log-decay."""
    G = log_decay.cumsum(1)
    decay = (-(G[:, :, None] - G[:, None]).abs()).exp()  # B T S H K
    scores = torch.einsum("bthk,bshk,btshk->bths", q, k, decay.expand(*decay.shape[:-1], q.shape[-1]))
    if causal:
        scores = scores * past(q.shape[1])
    return torch.einsum("bths,bshv->bthv", scores, v)


def past(T: int) -> Tensor:
    """[T, 1, T]: one where s ≤ t."""
    return torch.ones(T, T, dtype=torch.float64).tril()[:, None]


def test_no_decay_is_linear_attention_without_denominator() -> None:
    q, k, v = make_case("recurrence", "none", 70).tokens
    o, state = recurrence(q, k, v, None, rows=rows_of(q), state=None, causal=True)
    close(o, torch.einsum("bths,bshv->bthv", torch.einsum("bthk,bshk->bths", q, k) * past(70), v), 1e-12)
    zero = recurrence(q, k, v, torch.zeros_like(q), rows=rows_of(q), state=None, causal=True)
    close(zero, (o, state), 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_equal_channels_are_a_scalar_and_equal_steps_a_constant(causal: bool) -> None:
    q, k, v, scalar = make_case("recurrence", "scalar", 70).tokens
    for narrow, wide in (
        (scalar, scalar[..., None].expand_as(q)),
        (scalar[0, 0], scalar[0, 0].expand_as(scalar)),
    ):
        answers = [recurrence(q, k, v, g, rows=rows_of(q), state=None, causal=causal) for g in (narrow, wide)]
        close(answers[0], answers[1], 1e-12)


@pytest.mark.parametrize("kernel", RECURRENCES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_against_finite_differences(kernel: str, kind: str, causal: bool) -> None:
    case = make_case(kernel, kind, 5)
    rows = rows_of(case.tokens[0])
    run = case.run_from_state(causal=causal)
    others = [x for x in case.others if causal or x is not case.state]

    def function(*_: Tensor) -> list[Tensor]:
        o, state = run(*case.tokens, rows=rows, state=None)
        return [o, state] if causal else [o]

    assert torch.autograd.gradcheck(function, [*case.tokens, *others], fast_mode=True)


@pytest.mark.parametrize("kernel", RECURRENCES)
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_and_bfloat16_accumulate_in_float32(kernel: str, kind: str) -> None:
    case = make_case(kernel, kind, 70).cast(torch.bfloat16)
    exact = case.cast(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        o, state = case.run(causal=True)(*case.tokens, rows=rows_of(case.tokens[0]), state=None)
        o.float().square().sum().backward()
    expected, last = exact.run(causal=True)(*exact.tokens, rows=rows_of(exact.tokens[0]), state=None)
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    close(state, last, 1e-6)
    close(o, expected, 4e-3)
    assert all(x.grad is not None and x.grad.dtype == x.dtype for x in case.tokens)


def test_the_given_state_is_not_modified() -> None:
    case = make_case("recurrence", "channel", 1)
    before = case.state.detach().clone()
    for length in (1, 70):
        case.tokens = make_case("recurrence", "channel", length).tokens
        case.run_from_state(causal=True)(*case.tokens, rows=rows_of(case.tokens[0]), state=None)
    assert case.state.equal(before)


def test_rows_are_independent() -> None:
    case = make_case("recurrence", "scalar", 70)
    order = torch.tensor([2, 0, 1])
    run = case.run(causal=False)
    o, _ = run(*case.tokens, rows=rows_of(case.tokens[0]), state=None)
    permuted, _ = run(*(x[order] for x in case.tokens), rows=rows_of(case.tokens[0]), state=None)
    close(permuted, o[order], 1e-14)


@pytest.mark.parametrize("kernel", RECURRENCES)
@pytest.mark.parametrize("kind", KINDS)
def test_runs_on_the_meta_device(kernel: str, kind: str) -> None:
    case = make_case(kernel, kind, 70)
    tokens = [x.to("meta") for x in case.tokens]
    case.constant, case.bonus = (None if x is None else x.to("meta") for x in (case.constant, case.bonus))
    o, state = case.run(causal=True)(*tokens, rows=rows_of(tokens[0]), state=None)
    assert o.shape == (3, 70, 2, 4 if kernel == "value" else 5) and state.shape == (3, 2, 4, 5)


def test_cost_is_what_chunks_need() -> None:
    for width, C in ((8, 16), (40, 32)):
        q, k, v = (torch.randn(1, 128, 1, width) for _ in range(3))
        with FlopCounter() as counter:
            recurrence(q, k, v, None, rows=rows_of(q), state=None, causal=True)
        assert counter.total == 2 * 128 * (2 * C * width + 2 * width * width)


def test_the_value_side_is_the_first_pass_of_gated_slot_attention() -> None:
    q, slots, k, log_decay = (
        make_case("value", "channel", 90).tokens[0],
        *make_case("recurrence", "channel", 90).tokens[1:],
    )
    memory = torch.zeros(B, H, K, V, dtype=q.dtype)
    expected = []
    for t in range(90):
        memory = log_decay[:, t].exp()[..., None] * memory + slots[:, t][..., None] * k[:, t][..., None, :]
        expected.append(torch.einsum("bhsk,bhk->bhs", memory, q[:, t]))
    o, state = recurrence(q, slots, k, log_decay, rows=rows_of(q), state=None, causal=True, readout="value")
    close((o, state), (torch.stack(expected, 1), memory), 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_two_directions_on_the_value_side_equal_the_explicit_matrix(causal: bool) -> None:
    q, k, v, log_decay = make_case("value", "channel", 60).tokens
    G = log_decay.cumsum(1)
    decay = (-(G[:, :, None] - G[:, None]).abs()).exp()  # B T S H K
    scores = torch.einsum("bthv,bshv->bths", q, v) * (past(60) if causal else 1)
    o, _ = recurrence(q, k, v, log_decay, rows=rows_of(q), state=None, causal=causal, readout="value")
    close(o, torch.einsum("bths,btshk,bshk->bthk", scores, decay, k), 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_a_bonus_reads_what_lies_strictly_before_and_after(causal: bool) -> None:
    case = make_case("bonus", "channel", 40)
    q, k, v, log_decay = case.tokens
    bonus = case.bonus
    assert bonus is not None
    o, state = case.run(causal=causal)(*case.tokens, rows=rows_of(q), state=None)

    def strictly_before(q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        S, outputs = torch.zeros(B, H, K, V, dtype=q.dtype), []
        for t in range(q.shape[1]):
            outputs.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
            S = a[:, t][..., None] * S + k[:, t][..., None] * v[:, t][..., None, :]
        return torch.stack(outputs, 1), S

    tokens = (q, k, v, log_decay.exp())
    expected, last = strictly_before(*tokens)
    expected = expected + torch.einsum("bthk,hk,bthk->bth", q, bonus, k)[..., None] * v
    if not causal:
        expected = expected + strictly_before(*(x.flip(1) for x in tokens))[0].flip(1)
    close(o, expected, 1e-12)
    if causal:
        close(state, last, 1e-12)


def test_a_bonus_of_one_without_decay_is_the_plain_recurrence() -> None:
    q, k, v = make_case("recurrence", "none", 70).tokens
    for causal in (True, False):
        plain = recurrence(q, k, v, None, rows=rows_of(q), state=None, causal=causal)
        ones = torch.ones(H, K, dtype=q.dtype)
        close(recurrence(q, k, v, None, rows=rows_of(q), state=None, causal=causal, bonus=ones), plain, 1e-12)


def test_an_unknown_readout_or_a_bonus_on_the_value_side_is_one_clear_line() -> None:
    q = torch.randn(1, 2, 1, 4)
    with pytest.raises(ValueError, match="unknown readout 'values'; did you mean 'value'"):
        recurrence(q, q, q, None, rows=rows_of(q), state=None, causal=True, readout="values")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a bonus is for readout 'key' only"):
        recurrence(q, q, q, None, rows=rows_of(q), state=None, causal=True, readout="value", bonus=torch.ones(1, 4))


def test_unknown_algorithm_is_one_clear_line() -> None:
    q = torch.randn(1, 2, 1, 4)
    with pytest.raises(ValueError, match="unknown algorithm 'chunk'; did you mean 'chunked'"):
        recurrence(q, q, q, None, rows=rows_of(q), state=None, causal=True, algorithm="chunk")
