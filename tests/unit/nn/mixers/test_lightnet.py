"""LightNet: its formula token by token, and the softmax over tokens that it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from tests.unit.nn.formula_cases import LENGTHS, check_formula, heads_of, mixer_of, recur, rms, tokens_of


def gated(mixer: Any, x: Tensor, o: Tensor) -> Any:
    return mixer.output(silu(mixer.gate_up(mixer.gate_down(x))) * rms(o.flatten(2), mixer.norm.weight))


@pytest.mark.parametrize("length", LENGTHS)
def test_causal_is_a_recurrence(length: int) -> None:
    mixer = mixer_of("lightnet")

    def formula(x: Tensor) -> Tensor:
        key = mixer.decay.project(x)
        z = (1 + key.exp().cumsum(1)).log()
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
        q, v = heads_of(silu(mixer.query(x))), heads_of(mixer.value(x))
        return gated(mixer, x, recur(q, heads_of((key - z).exp()), v, heads_of(before - z), True))

    check_formula(mixer, formula, length)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("position", ["none", "cosine"])
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_undecayed_attention_to_a_softmax_over_tokens(length: int, position: str, causal: bool) -> None:
    mixer = mixer_of("lightnet", causal, position=position)

    def formula(x: Tensor) -> Tensor:
        key = mixer.decay.project(x).exp()
        sums = 1 + (key.cumsum(1) if causal else key.sum(1, keepdim=True))
        q, v = heads_of(silu(mixer.query(x)) / sums), heads_of(mixer.value(x))
        steps = torch.arange(length, dtype=x.dtype)
        factors = torch.ones(1, 1, 1, 1, dtype=x.dtype)
        if mixer.position is not None:
            begin = 10_000.0 ** (-2 * torch.arange(mixer.position.shift.numel(), dtype=x.dtype) / x.shape[-1])
            angles = begin.view_as(mixer.position.shift) + mixer.position.shift
            factors = ((steps[:, None] - steps)[..., None, None] * angles).cos()  # T S H K
        scores = torch.einsum("bthk,bshk,tshk->bhts", q, heads_of(key), factors.expand(length, length, *q.shape[2:]))
        return gated(mixer, x, torch.einsum("bhts,bshv->bthv", scores.tril() if causal else scores, v))

    check_formula(mixer, formula, length)


@pytest.mark.parametrize("causal", [True, False])
def test_packed_and_padded_loud_rows_in_float32_are_those_alone(causal: bool) -> None:
    mixer = mixer_of("lightnet", causal).float()
    with torch.no_grad():
        mixer.decay.project.weight.mul_(100)
    x = tokens_of(20).detach().float()
    segments = torch.tensor([[1] * 7 + [0] * 2 + [1] * 3 + [2] * 8, [0] * 5 + [3] * 1 + [5] * 10 + [0] * 4])
    y, _ = mixer(x, segments=segments)
    assert mixer.decay.project(x).abs().max() > 300
    for row, ids in enumerate(segments):
        for segment in ids[ids != 0].unique():
            mine = ids == segment
            alone, _ = mixer(x[row : row + 1, mine])
            torch.testing.assert_close(y[row, mine], alone[0], rtol=1e-4, atol=1e-5)


def test_two_directions_read_backwards_what_they_read_forwards() -> None:
    mixer, x = mixer_of("lightnet", causal=False), tokens_of(33)
    torch.testing.assert_close(mixer(x.flip(1))[0].flip(1), mixer(x)[0], rtol=1e-10, atol=1e-12)
