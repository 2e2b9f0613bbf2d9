"""The chunked state-space scan against the step-by-step definition, and against the plain scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.nn.kernels import state_space
from paribus.nn.kernels.cost import FlopCounter
from paribus.nn.kernels.scan import scan
from paribus.nn.kernels.state_space import state_space_scan
from paribus.nn.segments import Past, Rows, resolve
from tests.unit.nn.kernel_cases import Run, close, in_pieces, random_cuts, random_segments, real, with_gradients

B, E, N = 3, 5, 4
LENGTHS = [1, 7, 63, 65, 200]
KINDS = ["selective", "selective complex", "constant", "constant complex", "stepped complex"]


@dataclass
class Case:
    """Inputs of one kind, by the names of the kernel's arguments."""

    tokens: dict[str, Tensor]
    """With tokens on dimension 1; x is the first."""
    others: dict[str, Tensor]
    """Without tokens."""

    def run(self, **options: Any) -> Run:
        """run(*tokens, rows=, state=) with everything else in its place; complex states as pairs of real numbers."""

        def call(*tokens: Tensor, rows: Rows, state: Any) -> tuple[Tensor, Any]:
            inputs = {"step": None, "write": None, **self.others, **dict(zip(self.tokens, tokens, strict=True))}
            initial = inputs.pop("state")
            if state is not None and initial.is_complex():
                state = torch.view_as_complex(state)
            elif state is None and options["causal"]:
                state = initial
            y, last = state_space_scan(**inputs, rows=rows, state=state, **options)
            return y, torch.view_as_real(last) if last is not None and last.is_complex() else last

        return call

    def compare(self, causal: bool, segments: Tensor | None, tolerance: float) -> list[Tensor]:
        """The fast form equals the reference in answers, states and all gradients; the fast one's are returned."""
        tokens, others = list(self.tokens.values()), list(self.others.values())
        fast = with_gradients(self.run(causal=causal), tokens, others, segments)
        exact = with_gradients(self.run(causal=causal, algorithm="reference"), tokens, others, segments)
        close(fast, exact, tolerance)
        return fast


def make_case(kind: str, length: int, dtype: torch.dtype = torch.float64, strength: float = 1.0) -> Case:
    draw = torch.Generator().manual_seed(length)
    wide = torch.complex128 if "complex" in kind else torch.float64

    def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=dtype)

    rate = normal(N, E, dtype=wide)
    rate = rate - rate.real - strength * normal(N, E).sigmoid()
    tokens = {"x": normal(B, length, E)}
    others = {"rate": rate, "state": normal(B, N, E, dtype=wide)}
    if not kind.startswith("constant"):
        tokens["step"] = normal(B, length, E).sigmoid()
    if kind.startswith("selective"):
        tokens |= {"write": normal(B, length, N, dtype=wide), "read": normal(B, length, N, dtype=wide)}
    else:
        others["read"] = normal(N, E, dtype=wide)
    for tensors in (tokens, others):
        for name, tensor in tensors.items():
            to = dtype.to_complex() if tensor.is_complex() else dtype
            tensors[name] = tensor.to(to).requires_grad_()
    return Case(tokens, others)


def segments_of(layout: str, length: int) -> Tensor | None:
    return random_segments(B, length) if layout == "segments" else None


@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference(kind: str, length: int, causal: bool, layout: str) -> None:
    make_case(kind, length).compare(causal, segments_of(layout, length), 1e-11)


@pytest.mark.parametrize("kind", ["selective", "constant complex"])
def test_equals_the_reference_at_a_thousand_tokens(kind: str) -> None:
    make_case(kind, 1000, strength=0.1).compare(True, None, 1e-11)


@pytest.mark.parametrize("kind", ["selective", "constant complex"])
def test_a_batch_in_groups_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_space, "GROUP", 2 * N * E)  # rows 0 and 1, then row 2
    make_case(kind, 65).compare(True, random_segments(B, 65), 1e-11)


@pytest.mark.parametrize("kind", ["selective", "constant complex"])
@pytest.mark.parametrize("causal", [True, False])
def test_float32_is_near_the_reference(kind: str, causal: bool) -> None:
    make_case(kind, 200, torch.float32).compare(causal, random_segments(B, 200), 5e-6)


@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["selective", "constant complex"])
def test_any_cut_gives_the_same(kind: str, length: int, layout: str) -> None:
    case, segments = make_case(kind, length), segments_of(layout, length)
    run, tokens = case.run(causal=True), list(case.tokens.values())
    whole, state = run(*tokens, rows=resolve(tokens[0], segments, None), state=None)
    pieces, last = in_pieces(run, tokens, segments, random_cuts(length))
    close([real(pieces, segments), last], [real(whole, segments), state], 1e-11)
    leaves = [*tokens, *case.others.values()]
    gradients = [torch.autograd.grad(real(y, segments).square().sum(), leaves) for y in (pieces, whole)]
    close(gradients[0], gradients[1], 1e-11)


@pytest.mark.parametrize("kind", ["selective", "constant complex"])
@pytest.mark.parametrize("causal", [True, False])
def test_strong_decay_is_exact(kind: str, causal: bool) -> None:
    case = make_case(kind, 100)
    rate = case.others["rate"].detach().clone()
    rate[0] -= 50.0
    rate[1] -= 1e4
    rate[2] = rate[2] - rate[2].real
    case.others["rate"] = rate.requires_grad_()
    assert all(torch.isfinite(t).all() for t in case.compare(causal, random_segments(B, 100), 1e-11))


def test_one_state_is_the_plain_scan() -> None:
    x, step, rate = torch.randn(B, 70, E), torch.rand(B, 70, E), -torch.rand(1, E)
    ones = torch.ones(B, 70, 1)
    for causal in (True, False):
        segments = random_segments(B, 70)
        rows = resolve(x, segments, None)
        y, state = state_space_scan(x, step, rate, ones, ones, rows=rows, state=None, causal=causal)
        h, last = scan(x, step * rate, rows=rows, state=None, causal=causal)
        close(real(y, segments), real(h, segments), 1e-6)
        if causal:
            close(state, last[:, None], 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_invisible(kind: str) -> None:
    case = make_case(kind, 40)
    case.others["state"] = torch.zeros_like(case.others["state"])  # without segments there is no start to forget it
    keep = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:30].sort().values
    segments = torch.zeros(B, 40, dtype=torch.long)
    segments[:, keep] = 1
    tokens = [t.detach() for t in case.tokens.values()]
    padded = [tokens[0].masked_fill((segments == 0)[..., None], float("nan")), *tokens[1:]]
    for causal in (True, False):
        run = case.run(causal=causal)
        y, state = run(*padded, rows=resolve(padded[0], segments, None), state=None)
        short = [t[:, keep] for t in tokens]
        close([y[:, keep], state], run(*short, rows=resolve(short[0], None, None), state=None), 1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_by_differences(kind: str, causal: bool) -> None:
    case = make_case(kind, 5)
    past = Past(torch.tensor([1, 1, 0]), torch.tensor([4, 2, 0])) if causal else None
    rows = resolve(case.tokens["x"], torch.tensor([[1, 1, 2, 2, 2], [1, 0, 1, 1, 0], [0, 1, 1, 2, 2]]), past)
    names = list(case.others)

    def answer(*leaves: Tensor) -> list[Tensor]:
        case.others = dict(zip(names, leaves[len(case.tokens) :], strict=True))
        y, state = case.run(causal=causal)(*leaves[: len(case.tokens)], rows=rows, state=None)
        y = real(y, rows.ids)
        return [y] if state is None else [y, state]

    leaves = [*case.tokens.values(), *case.others.values()]
    if not causal:
        case.others["state"].requires_grad_(False)
    assert torch.autograd.gradcheck(answer, leaves, fast_mode=True)


def test_bfloat16_accumulates_in_float32() -> None:
    case = make_case("selective", 300, torch.bfloat16, strength=0.01)
    tokens, rows = list(case.tokens.values()), resolve(case.tokens["x"], None, None)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = case.run(causal=True)(*tokens, rows=rows, state=None)
    exact, last = case.run(causal=True, algorithm="reference")(*tokens, rows=rows, state=None)
    assert y.dtype is torch.bfloat16
    assert state.dtype is torch.float32
    close(y.double(), exact.double(), 5e-3)
    close(state, last, 1e-5)


def test_only_chunk_borders_are_kept() -> None:
    case = make_case("selective", 8 * state_space.CHUNK)
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() if tensor.shape[-2:] == (N, E) and tensor.dim() == 3 else 0
        return tensor

    tokens = list(case.tokens.values())
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        case.run(causal=True)(*tokens, rows=resolve(tokens[0], None, None), state=None)
    assert kept == 8 * B * N * E


def test_state_is_never_changed_in_place_and_holds_no_sequence() -> None:
    case = make_case("selective", 65)
    tokens = [t.detach() for t in case.tokens.values()]
    run = case.run(causal=True)
    _, state = run(*tokens, rows=resolve(tokens[0], None, None), state=None)
    before = state.clone()
    assert state.untyped_storage().nbytes() == state.nbytes
    past = Past(torch.ones(B, dtype=torch.long), torch.full((B,), 65))
    run(*tokens, rows=resolve(tokens[0], None, past), state=state)
    assert torch.equal(state, before)


def test_cost_is_two_a_pass_and_two_a_product() -> None:
    case = make_case("selective", 65)
    tokens, others = list(case.tokens.values()), [case.others["rate"]]
    with FlopCounter() as counter:
        y, _ = case.run(causal=True)(*tokens, rows=resolve(tokens[0], None, None), state=None)
        forward = counter.total
        torch.autograd.grad(y.sum(), [*tokens, *others])
    states = B * 65 * N * E
    assert forward == 4 * states  # the recurrence; what is read
    assert counter.total - forward == (2 + 2 + 3 * 2) * states  # states again, their gradients; three products


def test_works_without_data() -> None:
    case = make_case("selective", 50)
    tokens = [t.to("meta") for t in case.tokens.values()]
    case.others = {name: t.to("meta") for name, t in case.others.items()}
    y, state = case.run(causal=True)(*tokens, rows=resolve(tokens[0], None, None), state=None)
    assert y.is_meta
    assert y.shape == (B, 50, E)
    assert state.shape == (B, N, E)


def test_an_unknown_algorithm_is_refused() -> None:
    case = make_case("selective", 3)
    with pytest.raises(ValueError, match="unknown algorithm 'chunk'; did you mean 'chunked'"):
        case.run(causal=True, algorithm="chunk")(
            *case.tokens.values(), rows=resolve(case.tokens["x"], None, None), state=None
        )
