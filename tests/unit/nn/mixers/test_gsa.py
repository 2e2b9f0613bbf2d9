"""Gated slot attention: its formula, slot by slot and token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from paribus.nn.component import make_mixer
from paribus.nn.mixer import Placement
from tests.unit.nn.formula_cases import LENGTHS, check_formula, heads_of, mixer_of, recur, rms, tokens_of


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_its_formula(length: int, causal: bool) -> None:
    mixer = mixer_of("gsa", causal, num_slots=5, temperature=3.0)

    def formula(x: Tensor) -> Tensor:
        f = heads_of(mixer.forget(x).sigmoid() ** (1 / 3))
        q, k, v = (heads_of(silu(project(x))) for project in (mixer.query, mixer.key, mixer.value))
        scores = recur(q, 1 - f, k, f.log(), causal, readout="value")
        o = recur(scores.softmax(-1), 1 - f, v, f.log(), causal)
        return mixer.output(rms(silu(o.flatten(2)), mixer.norm.weight))

    check_formula(mixer, formula, length)


def test_slots_that_are_written_once_are_softmax_attention() -> None:
    """Slot s taken by token s alone and never forgotten: K and V of the slots are the tokens' own."""
    length = 6
    mixer, x = mixer_of("gsa", num_slots=length), tokens_of(length).detach()
    x[..., :length] = torch.eye(length, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        weight = torch.zeros(3, length, 12, dtype=torch.float64)
        weight[:, :, :length] = -1e4 * torch.eye(length) + 1e4 * (1 - torch.eye(length)) / 4
        mixer.forget.weight.copy_(weight.flatten(0, 1))
    q, k, v = (heads_of(silu(project(x))) for project in (mixer.query, mixer.key, mixer.value))
    f = heads_of(mixer.forget(x).sigmoid() ** (1 / 8))
    assert f.round().equal(f)
    written = torch.ones(length, length).tril()  # a slot that is not, scores 0 and holds 0
    scores = torch.einsum("bthk,bshk->bhts", q, k) * written
    o = torch.einsum("bhts,bshv->bthv", scores.softmax(-1) * written, v)
    expected = mixer.output(rms(silu(o.flatten(2)), mixer.norm.weight))
    torch.testing.assert_close(mixer(x)[0], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_slots": 0}, "gsa: num_slots is 0; at least 1 is needed"),
        ({"temperature": 0.0}, r"gsa: temperature is 0\.0; a positive number is needed"),
        ({"num_heads": 3}, "gsa: width 16 is not divisible by num_heads 3"),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mixer({"name": "gsa", **settings}, Placement(16))
