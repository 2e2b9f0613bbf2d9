"""The chunked delta rule against the step-by-step definition, and both against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paribus.nn.kernels.cost import FlopCounter
from paribus.nn.kernels.delta import delta
from paribus.nn.kernels.recurrence import recurrence
from paribus.nn.segments import resolve
from tests.unit.nn.gated_cases import DELTAS, KINDS, LENGTHS, make_case, rows_of, segments_of
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, real, with_gradients


@pytest.mark.parametrize("kernel", DELTAS)
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


@pytest.mark.parametrize("kernel", DELTAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.1, 50.0])
def test_float32_is_near_the_reference_at_any_strength(kernel: str, kind: str, strength: float) -> None:
    case = make_case(kernel, kind, 1000, strength)
    case32 = case.cast(torch.float32)
    fast = with_gradients(case32.run_from_state(causal=True), case32.tokens, case32.others, None)
    exact = with_gradients(case.run_from_state(causal=True, algorithm="reference"), case.tokens, case.others, None)
    close(fast, exact, 3e-5)


@pytest.mark.parametrize("kernel", DELTAS)
@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 65, 200])
def test_any_cut_gives_the_same(kernel: str, length: int, kind: str, layout: str) -> None:
    case, segments = make_case(kernel, kind, length), segments_of(layout, length)
    run = case.run(causal=True)
    whole, state = run(*case.tokens, rows=resolve(case.tokens[0], segments, None), state=None)
    pieces, last = in_pieces(run, case.tokens, segments, random_cuts(length))
    close([real(pieces, segments), last], [real(whole, segments), state], 1e-12)
    gradients = [torch.autograd.grad(real(o, segments).square().sum(), case.tokens) for o in (pieces, whole)]
    close(gradients[0], gradients[1], 1e-11)


@pytest.mark.parametrize("kernel", DELTAS)
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


def by_definition(q: Tensor, k: Tensor, v: Tensor, strength: Tensor, log_decay: Tensor, strict: bool) -> Tensor:
    """The matrix (I - β k kᵀ) Diag(a) written out, one row and one head at a time; `log_decay` is per channel."""
    o = torch.zeros_like(v)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            S = torch.zeros(q.shape[-1], v.shape[-1], dtype=q.dtype)
            for t in range(q.shape[1]):
                key, beta = k[b, t, h], strength[b, t, h]
                decayed = torch.diag(log_decay[b, t, h].exp()) @ S
                S = (torch.eye(len(key)) - beta * torch.outer(key, key)) @ decayed + beta * torch.outer(key, v[b, t, h])
                o[b, t, h] = (decayed if strict else S).T @ q[b, t, h]
    return o


@pytest.mark.parametrize("algorithm", ["chunked", "reference"])
def test_is_the_definition_in_both_directions(algorithm: str) -> None:
    tokens = [x.detach() for x in make_case("delta", "channel", 20).tokens]
    rows = rows_of(tokens[0])
    forward = by_definition(*tokens, strict=False)
    o, _ = delta(*tokens, rows=rows, state=None, causal=True, algorithm=algorithm)
    close(o, forward, 1e-12)
    shifted = [*tokens[:4], torch.cat([tokens[4][:, 1:], torch.zeros_like(tokens[4][:, :1])], 1)]
    backward = by_definition(*(x.flip(1) for x in shifted), strict=True).flip(1)
    o, _ = delta(*tokens, rows=rows, state=None, causal=False, algorithm=algorithm)
    close(o, forward + backward, 1e-12)


def test_no_decay_is_the_global_triangular_solve() -> None:
    q, k, v, strength = (
        x.transpose(1, 2)
        for x in (*make_case("delta", "none", 90).tokens[:3], make_case("delta", "none", 90).tokens[3][..., None])
    )
    u = torch.linalg.solve_triangular(strength * (k @ k.mT), strength * v, upper=False, unitriangular=True)
    expected = (q @ k.mT).tril() @ u
    tokens = [x.transpose(1, 2) for x in (q, k, v)]
    for log_decay in (None, torch.zeros_like(tokens[0])):
        o, _ = delta(
            *tokens, strength.transpose(1, 2)[..., 0], log_decay, rows=rows_of(tokens[0]), state=None, causal=True
        )
        close(o, expected.transpose(1, 2), 1e-12)


@pytest.mark.parametrize("kind", ["none", "scalar", "channel"])
def test_is_one_global_solve_for_values_of_the_recurrence(kind: str) -> None:
    q, k, v, strength, *decay = make_case("delta", kind, 50).tokens
    log_decay = decay[0] if decay else None
    wide = torch.zeros_like(q) if log_decay is None else log_decay
    G = (wide if wide.dim() == 4 else wide[..., None].expand_as(q)).cumsum(1)
    between = (G[:, :, None] - G[:, None]).clamp(max=0).exp()  # B T S H K
    matrix = torch.einsum("bth,bthk,bshk,btshk->bhts", strength, k, k, between)
    target = (strength[..., None] * v).transpose(1, 2)
    u = torch.linalg.solve_triangular(matrix, target, upper=False, unitriangular=True).transpose(1, 2)
    answers = (
        delta(q, k, v, strength, log_decay, rows=rows_of(q), state=None, causal=True),
        recurrence(q, k, u, log_decay, rows=rows_of(q), state=None, causal=True),
    )
    close(answers[0], answers[1], 1e-12)


def rank_one(q: Tensor, k: Tensor, strength: Tensor, r: Tensor, k2: Tensor, v2: Tensor, w: Tensor) -> list[Tensor]:
    """S = (Diag(w) - β k rᵀ) S + k₂ v₂ᵀ from each token to the next; before and after each token, what q reads."""
    S = torch.zeros(*q.shape[::2], k.shape[-1], v2.shape[-1], dtype=q.dtype)
    before, after = [], []
    for t in range(q.shape[1]):
        before.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
        outer = torch.einsum("bh,bhk,bhl->bhkl", strength[:, t], k[:, t], r[:, t])
        written = torch.einsum("bhk,bhv->bhkv", k2[:, t], v2[:, t])
        S = (torch.diag_embed(w[:, t].exp()) - outer) @ S + written
        after.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
    return [torch.stack(before, 1), torch.stack(after, 1), S]


@pytest.mark.parametrize("algorithm", ["chunked", "reference"])
def test_a_decay_plus_rank_one_is_its_definition_in_both_directions(algorithm: str) -> None:
    case = make_case("rank_one", "channel", 40)
    rows = rows_of(case.tokens[0])
    _, forward, last = rank_one(*case.tokens)
    close(case.run(causal=True, algorithm=algorithm)(*case.tokens, rows=rows, state=None), (forward, last), 1e-12)
    backward = rank_one(*(x.flip(1) for x in case.tokens))[0].flip(1)
    o, _ = case.run(causal=False, algorithm=algorithm)(*case.tokens, rows=rows, state=None)
    close(o, forward + backward, 1e-12)


def test_a_decay_plus_rank_one_is_the_recurrence_over_both_writes() -> None:
    q, k, strength, r, k2, v2, w = make_case("rank_one", "channel", 50).tokens
    G = w.cumsum(1)
    between = (G[:, :, None] - w[:, :, None] - G[:, None]).clamp(max=0).exp()  # B T S H K, undecayed by t itself
    matrix, other = (torch.einsum("bth,bthk,bshk,btshk->bhts", -strength, r, x, between) for x in (k, k2))
    target = other.tril(-1) @ v2.transpose(1, 2)
    u = torch.linalg.solve_triangular(-matrix, target, upper=False, unitriangular=True).transpose(1, 2)
    sums = [recurrence(q, key, value, w, rows=rows_of(q), state=None, causal=True) for key, value in ((k, u), (k2, v2))]
    expected = [one + other for one, other in zip(*sums, strict=True)]
    close(
        make_case("rank_one", "channel", 50).run(causal=True)(
            q, k, strength, r, k2, v2, w, rows=rows_of(q), state=None
        ),
        expected,
        1e-11,
    )


def test_erasing_before_a_decay_is_erasing_what_it_divides() -> None:
    q, k, v, strength, r, k2, v2, w = make_case("erase", "channel", 70).tokens
    same = {"rows": rows_of(q), "state": None, "causal": True, "write": (k2, v2)}
    answers = (
        delta(q, k, v, strength, w, erase=r, erase_undecayed=True, **same),
        delta(q, k, v, strength, w, erase=r / w.exp(), **same),
    )
    close(answers[0], answers[1], 1e-12)


def test_orthogonal_keys_make_it_the_recurrence() -> None:
    q, _, v, _, log_decay = make_case("delta", "channel", 4).tokens
    k = torch.eye(4, dtype=q.dtype)[None, :, None].expand(3, 4, 2, 4)
    answers = (
        delta(q, k, v, torch.ones_like(q[..., 0]), log_decay, rows=rows_of(q), state=None, causal=True),
        recurrence(q, k, v, log_decay, rows=rows_of(q), state=None, causal=True),
    )
    close(answers[0], answers[1], 1e-12)


def test_full_strength_replaces_what_the_key_held() -> None:
    v = torch.randn(1, 70, 1, 5, dtype=torch.float64)
    k = torch.zeros(1, 70, 1, 4, dtype=torch.float64)
    k[..., 1] = 1
    o, _ = delta(k, k, v, torch.ones(1, 70, 1), None, rows=rows_of(k), state=None, causal=True)
    close(o, v, 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_equal_channels_are_a_scalar(causal: bool) -> None:
    q, k, v, strength, scalar = make_case("delta", "scalar", 70).tokens
    answers = [
        delta(q, k, v, strength, g, rows=rows_of(q), state=None, causal=causal)
        for g in (scalar, scalar[..., None].expand_as(q))
    ]
    close(answers[0], answers[1], 1e-12)


@pytest.mark.parametrize("kernel", DELTAS)
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


@pytest.mark.parametrize("kernel", DELTAS)
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


@pytest.mark.parametrize("kernel", DELTAS)
@pytest.mark.parametrize("kind", KINDS)
def test_runs_on_the_meta_device(kernel: str, kind: str) -> None:
    case = make_case(kernel, kind, 70)
    tokens = [x.to("meta") for x in case.tokens]
    case.constant = None if case.constant is None else case.constant.to("meta")
    o, state = case.run(causal=True)(*tokens, rows=rows_of(tokens[0]), state=None)
    assert o.shape == (3, 70, 2, 5) and state.shape == (3, 2, 4, 5)


def test_cost_is_what_chunks_need() -> None:
    for width, C in ((8, 16), (40, 32)):
        q, k, v = (torch.randn(1, 128, 1, width) for _ in range(3))
        with FlopCounter() as counter:
            delta(q, k, v, torch.ones(1, 128, 1), None, rows=rows_of(q), state=None, causal=True)
        # q kᵀ, k kᵀ, inverse · v, inverse · k, pairs · values; three with states
        assert counter.total == 2 * 128 * (5 * C * width + 3 * width * width) + C * 128 * C


def test_nothing_to_write_is_one_clear_line() -> None:
    q = torch.randn(1, 2, 1, 4)
    with pytest.raises(ValueError, match="nothing to write: v and write are both None"):
        delta(q, q, None, q[..., 0], None, rows=rows_of(q), state=None, causal=True)


def test_unknown_algorithm_is_one_clear_line() -> None:
    q = torch.randn(1, 2, 1, 4)
    with pytest.raises(ValueError, match="unknown algorithm 'chunk'; did you mean 'chunked'"):
        delta(q, q, q, q[..., 0], None, rows=rows_of(q), state=None, causal=True, algorithm="chunk")
