"""Token shift: the neighbour in the segment, whatever lies between, however the sequence is cut."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Placement
from paribus.nn.segments import resolve
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.nn.token_shift import TokenShift, shift_tokens
from tests.unit.nn.kernel_cases import close, in_pieces, random_cuts, random_segments, real, with_gradients

LENGTHS = [1, 2, 7, 65]


def neighbours(x: Tensor, segments: Tensor, causal: bool) -> Tensor:
    """The definition, token by token."""
    y = torch.zeros_like(x)
    for b, row in enumerate(segments.tolist()):
        for t, segment in enumerate(row):
            same = [s for s, other in enumerate(row) if other == segment != 0]
            before, after = [s for s in same if s < t], [s for s in same if s > t]
            if causal and before:
                y[b, t] = x[b, before[-1]]
            elif not causal:
                y[b, t] = sum(0.5 * x[b, s] for s in (*before[-1:], *after[:1]))
    return y


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_neighbour_is_that_of_the_definition(length: int, layout: str, causal: bool) -> None:
    x = torch.randn(3, length, 4, dtype=torch.float64, requires_grad=True)
    segments = random_segments(3, length) if layout == "segments" else None
    marks = torch.ones(3, length, dtype=torch.long) if segments is None else segments

    def definition(x: Tensor, **_: Any) -> tuple[Tensor, None]:
        return neighbours(x, marks, causal) + 0 * x, None

    def ours(x: Tensor, **options: Any) -> tuple[Tensor, None]:
        return shift_tokens(x, causal=causal, **options)[0], None

    close(with_gradients(ours, [x], [], segments), with_gradients(definition, [x], [], segments), 1e-14)


@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("length", LENGTHS)
def test_cut_anywhere_gives_the_same(length: int, layout: str) -> None:
    x = torch.randn(3, length, 4, dtype=torch.float64)
    segments = random_segments(3, length) if layout == "segments" else None
    run = partial(shift_tokens, causal=True)
    whole, last = run(x, rows=resolve(x, segments, None), state=None)
    for cuts in (random_cuts(length), list(range(1, length + 1))):
        pieces, state = in_pieces(run, [x], segments, cuts)
        close(real(pieces, segments), real(whole, segments), 0)
        close(state, last, 0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["half", "learned"])
def test_a_shift_before_a_branch_is_its_formula(kind: Any, causal: bool) -> None:
    x, segments = torch.randn(2, 20, 6, dtype=torch.float64), random_segments(2, 20)
    shift = TokenShift(Placement(width=6, causal=causal), kind).double()
    initialize(shift, seed=0)
    n, valid = neighbours(x, segments, causal), (segments != 0)[..., None]
    if kind == "learned":
        with torch.no_grad():
            shift.share.add_(torch.linspace(-0.4, 0.4, 6))
        expected = x + shift.share * (n - x)
    else:
        expected = torch.cat([x[..., :3], n[..., 3:]], -1)
    close(shift(x, segments=segments)[0], expected * valid, 1e-14)


@pytest.mark.parametrize("residual", ["pre", "parallel", "reversible"])
@pytest.mark.parametrize("kind", ["half", "learned"])
def test_a_model_with_shifts_is_one_function_and_learns_them(kind: str, residual: str) -> None:
    block = {"mixer": {"name": "gla"}, "channel": {"name": "mlp"}, "residual": {"name": residual}, "token_shift": kind}
    config = ParibusConfig(hidden_size=32, num_hidden_layers=2, max_position_embeddings=64, blocks={"main": block})
    model = ParibusForCausalLM(config).double()
    initialize(model, seed=0)
    plain = ParibusForCausalLM(
        ParibusConfig(**{**config.to_dict(), "blocks": {"main": {**block, "token_shift": "none"}}})
    ).double()
    initialize(plain, seed=0)
    shared = dict(plain.named_parameters())
    assert all(torch.equal(p, shared[name]) for name, p in model.named_parameters() if name in shared)
    ids = torch.randint(0, 250, (2, 20), generator=torch.Generator().manual_seed(0))
    whole = model.eval()(ids).logits
    assert not torch.allclose(whole, plain.eval()(ids).logits)
    cache, pieces = None, []
    for part in ids.split([7, 1, 12], 1):
        output = model(part, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        pieces.append(output.logits)
    close(torch.cat(pieces, 1), whole, 1e-10)
    model.train()(ids, labels=ids).loss.backward()
    shares = [p for name, p in model.named_parameters() if name.endswith("_shift.share")]
    assert len(shares) == (4 if kind == "learned" else 0)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in shares)
