"""HGRN2 and HGRN3: their formulas token by token, and where the one is the other."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from paribus.evaluation.contract.subjects import Pair, in_pieces
from paribus.nn.component import make_mixer
from paribus.nn.decay import DECAYS
from paribus.nn.mixer import Placement, make_context
from tests.unit.nn.formula_cases import LENGTHS, check_formula, heads_of, mixer_of, recur, rms, tokens_of

CHOICES = [(name, granularity) for name, decay in DECAYS.items() for granularity in decay.granularities]


def finish(mixer: Any, o: Tensor) -> Any:
    return mixer.output(rms(o.flatten(2), mixer.norm.weight))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_hgrn2_is_its_formula(length: int, causal: bool) -> None:
    layers = nn.ModuleList(mixer_of("hgrn2", causal, layer=layer) for layer in (0, 1))
    mixer = layers[1]

    def formula(x: Tensor) -> Tensor:
        bound = torch.stack([layer.decay.bound.weight for layer in layers]).softmax(0)[1]
        f = heads_of(bound + (1 - bound) * mixer.decay.project(x).sigmoid())
        q, v = heads_of(silu(mixer.query(x))), heads_of(mixer.value(x))
        return finish(mixer, recur(q, 1 - f, v, f.log(), causal))

    check_formula(mixer, formula, length, make_context(layers))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_with_one_decay_for_a_head_keys_are_their_own(tied: bool, causal: bool) -> None:
    mixer = mixer_of("hgrn2", causal, decay="sigmoid", granularity="scalar", tied=tied)

    def formula(x: Tensor) -> Tensor:
        f = (mixer.decay.project(x) + 4).sigmoid()[..., None]
        q, k, v = heads_of(silu(mixer.query(x))), heads_of(silu(mixer.key(x))), heads_of(mixer.value(x))
        return finish(mixer, recur(q, (1 - f) * k if tied else k, v, f.log(), causal))

    check_formula(mixer, formula, 7)


def test_without_decay_it_is_linear_attention() -> None:
    mixer = mixer_of("hgrn2", decay="none", tied=False)

    def formula(x: Tensor) -> Tensor:
        q, k, v = heads_of(silu(mixer.query(x))), heads_of(silu(mixer.key(x))), heads_of(mixer.value(x))
        return finish(mixer, recur(q, k, v, torch.zeros_like(k), True))

    check_formula(mixer, formula, 7)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_hgrn3_is_its_formula(length: int, causal: bool) -> None:
    mixer = mixer_of("hgrn3", causal)

    def formula(x: Tensor) -> Tensor:
        f = heads_of((mixer.decay.project(x) + mixer.decay.bias).sigmoid())
        q, v = heads_of(silu(mixer.query(x))), heads_of(mixer.value(x))
        return finish(mixer, recur(q, 1 - f, v, f.log(), causal))

    check_formula(mixer, formula, length)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("granularity", "tied"), [("channel", True), ("scalar", False)])
def test_hgrn3_is_hgrn2_with_the_simple_decay(granularity: str, tied: bool, causal: bool) -> None:
    third = mixer_of("hgrn3", causal, granularity=granularity)
    second = mixer_of("hgrn2", causal, granularity=granularity, tied=tied, decay="sigmoid_offset")
    second.load_state_dict(third.state_dict(), strict=True)
    x = tokens_of(33)
    assert torch.equal(second(x)[0], third(x)[0])


@pytest.mark.parametrize(("name", "granularity"), CHOICES)
def test_any_decay_can_take_the_place_of_the_papers(name: str, granularity: str) -> None:
    settings = {"decay": name, "granularity": granularity, "tied": name != "none"}
    pair = Pair(*(mixer_of("hgrn2", layer=layer, **settings) for layer in (0, 1)))
    x = tokens_of(20)
    pair(x).square().sum().backward()
    for part, parameter in pair.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), part
    first = pair.layers[0]
    torch.testing.assert_close(in_pieces(first, x, None, (3, 4, 11)), first(x)[0], rtol=1e-10, atol=1e-10)


def test_bounds_rise_with_depth() -> None:
    layers = nn.ModuleList(mixer_of("hgrn2", layer=layer, num_layers=3) for layer in range(3))
    context = make_context(layers)
    bounds = [layer.decay.bound(context) for layer in layers]
    assert not bounds[0].any() and (bounds[1] < bounds[2]).all()
    quiet = partial(torch.full, (1, 4, 12), -1e4, dtype=torch.float64)
    for layer in layers:
        nn.init.ones_(layer.decay.project.weight)
    decays = [layer.decay.log_decay(quiet(), context).exp().flatten(2) for layer in layers]
    for decay, bound in zip(decays, bounds, strict=True):
        torch.testing.assert_close(decay, bound.expand_as(decay))


def test_bad_settings_are_one_clear_line() -> None:
    with pytest.raises(ValueError, match="hgrn2: tied keys need a decay, and decay is 'none'"):
        make_mixer({"name": "hgrn2", "decay": "none"}, Placement(16))
    with pytest.raises(ValueError, match="granularity of decay 'constant_tnl' is 'channel'; allowed: scalar"):
        make_mixer({"name": "hgrn2", "decay": "constant_tnl"}, Placement(16))
    for name in ("hgrn2", "hgrn3"):
        with pytest.raises(ValueError, match=f"{name}: width 16 is not divisible by num_heads 3"):
            make_mixer({"name": name, "num_heads": 3}, Placement(16))
