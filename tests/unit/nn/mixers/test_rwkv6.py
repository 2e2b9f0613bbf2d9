"""RWKV-6: its formula token by token, and the initial values of the published code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, pad, silu

from paribus.nn.component import make_mixer
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Placement
from tests.unit.nn.formula_cases import HEADS, LENGTHS, WIDTH, check_formula, heads_of, mixer_of


def read(mixer: Any, r: Tensor, k: Tensor, v: Tensor, w: Tensor, causal: bool) -> Tensor:
    """(S[t-1] + Diag(u) k vᵀ)ᵀ r, and with the other direction's S before its own decay if not causal."""
    steps = list(zip(*(x.unbind(1) for x in (r, k, v, w)), strict=True))
    outputs = [torch.einsum("bhk,hk,bhk,bhv->bhv", r_t, mixer.bonus, k_t, v_t) for r_t, k_t, v_t, _ in steps]
    orders = [range(len(steps))] if causal else [range(len(steps)), reversed(range(len(steps)))]
    for order in orders:
        S = torch.zeros_like(k[:, 0, :, :, None] * v[:, 0, :, None])
        for t in order:
            r_t, k_t, v_t, w_t = steps[t]
            outputs[t] = outputs[t] + torch.einsum("bhkv,bhk->bhv", S, r_t)
            S = w_t[..., None] * S + k_t[..., None] * v_t[..., None, :]
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_its_formula(length: int, causal: bool) -> None:
    mixer = mixer_of("rwkv6", causal, mix_rank=3, decay_rank=2)

    def formula(x: Tensor) -> Tensor:
        before, after = pad(x, (0, 0, 1, 0))[:, :-1], pad(x, (0, 0, 0, 1))[:, 1:]
        difference = (before if causal else (before + after) / 2) - x
        down = mixer.mix_down.weight.view(5, 3, WIDTH)

        def lerp(i: int) -> Tensor:
            low_rank = ((x + difference * mixer.first_mix) @ down[i].T).tanh() @ mixer.mix_up[i]
            return x + difference * (mixer.mixes[i] + low_rank)

        d = mixer.decay + (lerp(0) @ mixer.decay_down.weight.T).tanh() @ mixer.decay_up.weight.T
        k, v, r = heads_of(mixer.key(lerp(1))), heads_of(mixer.value(lerp(2))), heads_of(mixer.receptance(lerp(3)))
        o = layer_norm(read(mixer, r, k, v, heads_of((-d.exp()).exp()), causal), (WIDTH // HEADS,), eps=64e-5)
        o = o.flatten(2) * mixer.norm.weight + mixer.norm.bias
        return mixer.output(silu(mixer.gate(lerp(4))) * o)

    check_formula(mixer, formula, length)


def initial(choice: str, layer: int) -> Any:
    mixer = make_mixer({"name": "rwkv6", "initialization": choice}, Placement(64, layer=layer, num_layers=5))
    initialize(mixer, seed=0)
    return mixer


def test_initial_values_of_the_paper() -> None:
    third, n = initial("paper", 3), torch.arange(64)
    ratio, rest = 3 / 4, 1 - 3 / 5
    torch.testing.assert_close(third.mixes[0], 1 - (n / 64) ** rest)
    torch.testing.assert_close(third.mixes[2], 1 - ((n / 64) ** rest + 0.3 * ratio))
    torch.testing.assert_close(third.mixes[4], 1 - (n / 64) ** (0.5 * rest))
    torch.testing.assert_close(third.decay, -6 + 5 * (n / 63) ** (0.7 + 1.3 * ratio))
    torch.testing.assert_close(third.bonus.flatten(), ratio * (1 - n / 63) + ((n + 1) % 3 - 1) * 0.1)
    torch.testing.assert_close(third.norm.weight, torch.full((64,), (4 / 5) ** 0.7))
    assert not third.output.weight.any() and not third.mix_down.weight.any()
    assert third.key.weight.std() < 0.2 * third.value.weight.std()


def test_the_house_starts_every_layer_as_the_papers_first() -> None:
    first = initial("paper", 0)
    for layer in (0, 3):
        mixer = initial("house", layer)
        for name in ("first_mix", "mixes", "decay", "bonus", "mix_up"):
            assert torch.equal(getattr(mixer, name), getattr(first, name)), name
        assert mixer.output.weight.any() and mixer.mix_down.weight.any() and (mixer.norm.weight == 1).all()


@pytest.mark.parametrize("name", ["mix_rank", "decay_rank"])
def test_bad_settings_are_one_clear_line(name: str) -> None:
    with pytest.raises(ValueError, match=f"rwkv6: {name} is 0; at least 1 is needed"):
        make_mixer({"name": "rwkv6", name: 0}, Placement(16))
