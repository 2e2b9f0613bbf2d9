"""Initial values are keyed by seed and name, so that models start equal wherever they share a parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.initialization import guard_torch_init_functions

from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import fill_with, get_initialization, initialize
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

BLOCK = {"mixer": {"name": "attention"}, "channel": {"name": "glu"}}


def model(
    seed: int = 0, initialization: str = "fan_in", layers: int = 2, **change: dict[str, object]
) -> ParibusForCausalLM:
    config = ParibusConfig(
        hidden_size=64, num_hidden_layers=layers, blocks={"main": {**BLOCK, **change}}, initialization=initialization
    )
    made = ParibusForCausalLM(config)
    initialize(made, seed, initialization)
    return made


def test_shared_names_and_shapes_start_bit_equal() -> None:
    one = dict(model().named_parameters())
    for other in (
        model(channel={"name": "mlp"}),
        model(mixer={"name": "attention", "queries_per_key": 2}),
        model(layers=3),
    ):
        parts = dict(other.named_parameters())
        shared = [name for name in one if name in parts and one[name].shape == parts[name].shape]
        assert {"model.embedding.table.weight", "head.weight", "model.blocks.0.mixer.query.weight"} <= set(shared)
        assert all(torch.equal(one[name], parts[name]) for name in shared)
        assert set(parts) != set(one) or any(one[name].shape != parts[name].shape for name in one)


def test_seed_and_name_decide() -> None:
    one, same, other = model(), model(), model(seed=1)
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == name.endswith("norm.weight"), name
    first, second = (one.model.blocks[layer].mixer.query.weight for layer in (0, 1))
    assert not torch.equal(first, second)


def test_the_global_generator_neither_matters_nor_moves() -> None:
    one = model()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    initialize(one, 0)
    assert torch.equal(before, torch.get_rng_state())
    assert all(map(torch.equal, one.parameters(), model().parameters()))


def test_the_rules() -> None:
    for rule, spread in (("fan_in", 1 / 8), ("normal", 0.02)):
        made = model(initialization=rule)
        for weight in (made.model.embedding.table.weight, made.head.weight, made.model.blocks[0].channel.up.weight):
            assert weight.std().item() == pytest.approx(spread, rel=0.05)
        inner = made.model.blocks[0].channel.output.weight  # its fan-in is the inner width
        assert inner.std().item() == pytest.approx(inner.shape[1] ** -0.5 if rule == "fan_in" else 0.02, rel=0.05)
    linear = nn.Linear(4, 4)
    nn.init.ones_(linear.bias)
    initialize(linear, 0)
    assert not linear.bias.any()
    with pytest.raises(ValueError, match=r"unknown initialization 'fan'; did you mean 'fan_in'\?"):
        get_initialization("fan")


class Owner(nn.Module):
    """A module that fills with every random function and overrides what its part got."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(6, 6, bias=False)
        self.values = nn.ParameterList([nn.Parameter(torch.full((6, 6), torch.nan)) for _ in range(8)])

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.part.weight)
        fills = (
            nn.init.normal_,
            nn.init.uniform_,
            nn.init.trunc_normal_,
            nn.init.xavier_normal_,
            nn.init.xavier_uniform_,
            nn.init.kaiming_normal_,
            nn.init.kaiming_uniform_,
            nn.init.orthogonal_,
        )
        for fill, value in zip(fills, self.values, strict=True):
            fill(value)


class Padded(nn.Module):
    """The owner after a parameter that draws first, under the same names."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.owner = first, Owner()


def test_every_random_fill_is_keyed_by_name() -> None:
    one, other = Padded(nn.Identity()), Padded(nn.Linear(3, 3))
    initialize(one, 0)
    initialize(other, 0)
    for index, (a, b) in enumerate(zip(one.owner.values, other.owner.values, strict=True)):
        assert torch.equal(a, b), index
        assert a.isfinite().all()


def test_an_owner_overrides_its_parts() -> None:
    owner = Owner()
    initialize(owner, 0)
    assert not owner.part.weight.any()


def test_fill_with_keeps_what_was_loaded() -> None:
    parameter = nn.Parameter(torch.full((3, 4), 7.0))
    with guard_torch_init_functions():
        fill_with(parameter, lambda u: u + 1)
        assert not torch.equal(parameter, torch.full((3, 4), 7.0))
        assert ((parameter >= 1) & (parameter < 2)).all()
        parameter._is_hf_initialized = True
        kept = parameter.detach().clone()
        fill_with(parameter, lambda u: u + 3)
        assert torch.equal(parameter, kept)
    fill_with(parameter, lambda u: u + 3)  # unguarded, as `initialize` is
    assert (parameter >= 3).all()
    fill_with(torch.empty(2, device="meta"), lambda u: u)
