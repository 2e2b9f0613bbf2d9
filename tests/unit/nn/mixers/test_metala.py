"""MetaLA: its formula token by token, with and without what it adds to gated linear attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from paribus.nn.component import make_mixer
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Placement
from tests.unit.nn.formula_cases import LENGTHS, check_formula, convolve, heads_of, mixer_of, recur


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("convolution", [True, False])
@pytest.mark.parametrize("augmentation", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_its_formula(length: int, augmentation: bool, convolution: bool, causal: bool) -> None:
    mixer = mixer_of("metala", causal, self_augmentation=augmentation, short_convolution=convolution)

    def formula(x: Tensor) -> Tensor:
        u = silu(convolve(x, mixer.convolution, causal)) if convolution else x
        a = heads_of(mixer.decay(u).sigmoid() ** (1 / 16))
        q, v = heads_of(mixer.query(u)), heads_of(mixer.value(u))
        o = recur(q, 1 - a, v, a.log(), causal)
        if augmentation:
            o = o + ((q * mixer.augmentation * (1 - a)).sum(-1, keepdim=True) * v).sigmoid()
        centred = o - o.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return mixer.output(silu(mixer.gate(u)) * normed.flatten(2))

    check_formula(mixer, formula, length)


def test_initial_values_of_the_paper() -> None:
    house, paper = (
        make_mixer({"name": "metala", "initialization": choice}, Placement(64)) for choice in ("house", "paper")
    )
    for mixer in (house, paper):
        initialize(mixer, seed=0)
        assert not mixer.augmentation.any()
    bound = 2**-2.5 * (6 / (64 + 32)) ** 0.5
    for weight in (paper.query.weight, paper.decay.weight):
        assert 0.95 * bound < weight.abs().max() <= bound
    assert torch.equal(paper.value.weight, house.value.weight)
    assert house.query.weight.abs().max() > bound


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"taps": 0}, "metala: taps is 0; at least 1 is needed"),
        ({"key_expansion": 0.1}, "metala: key_expansion: width 1 is not divisible by num_heads 4"),
        ({"key_expansion": 0.0}, r"metala: key_expansion 0\.0 leaves no key channel for each head"),
        ({"num_heads": 3}, "metala: width 16 is not divisible by num_heads 3"),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mixer({"name": "metala", **settings}, Placement(16))
