"""Initial values are keyed by seed and name, so that models start equal wherever they share a parameter."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.initialization import guard_torch_init_functions

from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import INITIALIZATIONS, fill_with, get_initialization, initialize
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.optim.roles import parameter_roles

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


D, L, INNER, VOCAB, RANK = 96, 3, 192, 512, 32
SHAPES = {
    "model.embedding.table.weight": (VOCAB, D),
    "head.weight": (VOCAB, D),
    "model.blocks.1.mixer.query.weight": (D, D),
    "model.blocks.1.mixer.value.weight": (D, D),
    "model.blocks.1.mixer.output.weight": (D, D),
    "model.blocks.1.channel.up.weight": (INNER, D),
    "model.blocks.1.channel.output.weight": (D, INNER),
}


def xavier(outputs: int, inputs: int) -> float:
    return math.sqrt(2 / (outputs + inputs))


# Of each rule, the standard deviation of table, head, query, value, mixer's output, channel mixer's input and output.
SPREADS: dict[str, tuple[float, ...]] = {
    "fan_in": (*[D**-0.5] * 6, INNER**-0.5),
    "normal": (0.02,) * 7,
    "truncated_normal": (0.02 * 0.98658,) * 7,  # what is left of a normal's deviation when cut at three
    "gpt2": (0.02, 0.02, 0.02, 0.02, 0.02 / 6**0.5, 0.02, 0.02 / 6**0.5),
    "gpt_neox": (*[(0.4 / D) ** 0.5] * 4, 2 / 3 * D**-0.5, (0.4 / D) ** 0.5, 2 / 3 * D**-0.5),
    "inverse_sqrt_width": (D**-0.5,) * 7,
    "small_embedding": (1e-4 / 3**0.5, *[D**-0.5] * 5, INNER**-0.5),
    "zero_output": (*[D**-0.5] * 4, 0, D**-0.5, 0),
    "xavier": (D**-0.5, D**-0.5, *[xavier(D, D)] * 3, xavier(INNER, D), xavier(D, INNER)),
    "xavier_fairseq": (
        *(D**-0.5, D**-0.5),
        *[2**-0.5 * xavier(D, D)] * 2,
        *(xavier(D, D), xavier(INNER, D), xavier(D, INNER)),
    ),
    "xavier_fla": (D**-0.5, D**-0.5, *[2**-2.5 * xavier(D, D)] * 3, D**-0.5, INNER**-0.5),
    "deep_norm": (
        *(D**-0.5, D**-0.5, xavier(D, D)),
        *(24**-0.25 * part for part in (xavier(D, D), xavier(D, D), xavier(INNER, D), xavier(D, INNER))),
    ),
    "orthogonal": (*[D**-0.5] * 6, INNER**-0.5),
    "mup": (1, 1 / D, *[D**-0.5] * 4, INNER**-0.5),
}


def measured(rule: str, seed: int = 0, **keys: object) -> ParibusForCausalLM:
    block = {"mixer": {"name": "attention"}, "channel": {"name": "mlp", "expansion": INNER / D}}
    config = ParibusConfig(
        hidden_size=D, num_hidden_layers=L, vocab_size=VOCAB, blocks={"main": block}, initialization=rule, **keys
    )
    made = ParibusForCausalLM(config)
    initialize(made, seed, rule)
    return made


@pytest.mark.parametrize("rule", SPREADS)
def test_each_place_has_its_spread(rule: str) -> None:
    weights = measured(rule).state_dict()
    for (name, shape), spread in zip(SHAPES.items(), SPREADS[rule], strict=True):
        assert weights[name].shape == shape
        assert weights[name].square().mean().sqrt().item() == pytest.approx(spread, rel=0.03), name
        assert abs(weights[name].mean().item()) <= 5 * spread / weights[name].numel() ** 0.5, name


def test_the_shape_of_the_distribution() -> None:
    def largest(rule: str) -> float:
        found = measured(rule).state_dict()["model.blocks.1.channel.up.weight"]
        return float(found.abs().max() / found.std())

    assert 3.5 < largest("fan_in") < 6
    assert 2.9 < largest("truncated_normal") <= 3.1
    assert largest("xavier") == pytest.approx(3**0.5, rel=0.02)


def test_orthogonal_maps() -> None:
    model = measured("orthogonal")
    for layer in range(L):
        block = model.model.blocks[layer]
        for weight in (block.mixer.query.weight, block.mixer.output.weight, block.channel.output.weight):
            torch.testing.assert_close(weight @ weight.T, torch.eye(D), rtol=0, atol=1e-6)
        tall = block.channel.up.weight
        torch.testing.assert_close(tall.T @ tall, INNER / D * torch.eye(D), rtol=0, atol=2e-6)
    draws = torch.stack([orthogonal(seed) for seed in range(400)])
    assert draws.mean(0).abs().max() < 0.15  # uniform over rotations and reflections: no entry leans to a side
    assert (torch.linalg.det(draws) > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)


def orthogonal(seed: int) -> Tensor:
    linear = nn.Linear(3, 3, bias=False)
    initialize(linear, seed, "orthogonal")
    return linear.weight.detach()


@pytest.mark.parametrize("rank", [0, RANK])
def test_token_vectors_have_length_one_in_the_house(rank: int) -> None:
    for scale, expected in (("none", 1.0), ("sqrt_width", D**0.5)):
        made = measured("fan_in", embedding={"rank": rank, "scale": scale})
        lengths = made.model.embedding(torch.arange(VOCAB)).square().sum(-1).mean().sqrt()
        assert lengths.item() == pytest.approx(expected, rel=0.1)
    assert measured("mup", embedding={"rank": rank}).model.embedding(torch.arange(VOCAB)).std().item() == pytest.approx(
        1, rel=0.15
    )


def test_a_branch_of_zeros_leaves_the_stream_as_it_is() -> None:
    ids = torch.arange(7)[None]
    hidden = measured("zero_output").model(ids, output_hidden_states=True).hidden_states
    assert torch.equal(hidden[0], hidden[L - 1]) and hidden[0].any()
    assert not torch.equal(measured("fan_in").model(ids, output_hidden_states=True).hidden_states[L - 1], hidden[0])


def test_a_tied_head_is_the_table() -> None:
    for rule in sorted(set(INITIALIZATIONS) - {"mup"}):
        tied, untied = measured(rule, tie_word_embeddings=True), measured(rule)
        assert tied.head.weight is tied.model.embedding.table.weight
        assert torch.equal(tied.head.weight, untied.model.embedding.table.weight), rule
    with pytest.raises(ValueError, match="'mup' scales table and head apart; tie_word_embeddings must be false"):
        measured("mup", tie_word_embeddings=True)


@pytest.mark.parametrize("rule", INITIALIZATIONS)
def test_every_rule_is_keyed_guarded_and_trains(rule: str, tmp_path: Path) -> None:
    one, same, other = model(initialization=rule), model(initialization=rule), model(1, initialization=rule)
    assert all(map(torch.equal, one.parameters(), same.parameters()))
    assert not all(map(torch.equal, one.parameters(), other.parameters()))
    assert INITIALIZATIONS[rule].__doc__
    optimizer = torch.optim.Adam(one.parameters(), lr=1e-3)
    ids = torch.randint(256, (2, 12))
    for _ in range(2):
        loss = one(ids, labels=ids).loss
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in one.parameters())
    one.save_pretrained(tmp_path)
    loaded = ParibusForCausalLM.from_pretrained(tmp_path)
    assert all(map(torch.equal, one.parameters(), loaded.parameters()))


@pytest.mark.parametrize("rule", INITIALIZATIONS)
def test_components_alone_are_initialised_too(rule: str) -> None:
    part = nn.ModuleDict({"table": nn.Embedding(50, 8), "map": nn.Linear(8, 24), "back": nn.Linear(24, 8)})
    for parameter in part.parameters():
        nn.init.constant_(parameter, math.nan)
    initialize(part, 0, rule)
    assert all(parameter.isfinite().all() for parameter in part.parameters())
    assert not part["map"].bias.any() and part["map"].weight.std() > 0


def test_an_unknown_rule() -> None:
    with pytest.raises(ValueError, match=r"model: unknown initialization 'fan'; did you mean 'fan_in'\?"):
        get_initialization("fan")


POWERS = {"embedding": 0, "vector": 0, "gate": 0, "matrix": -1, "head": -1}
"""Powers of the width in the factors of `lr` that `mup` tells."""


def changes(width: int, rule: str, powers: dict[str, int]) -> Tensor:
    """How far two steps of Adam move stream and logits, root mean square, with an `lr` for width 64."""
    block = {"mixer": {"name": "attention", "num_heads": width // 16}, "channel": {"name": "mlp", "expansion": 1}}
    config = ParibusConfig(hidden_size=width, num_hidden_layers=2, blocks={"main": block}, initialization=rule)
    net = ParibusForCausalLM(config)
    initialize(net, 0, rule)
    roles = parameter_roles(net)
    rates = {name: 0.001 * (width / 64) ** powers[roles[name]] for name in roles}
    optimizer = torch.optim.Adam([{"params": [part], "lr": rates[name]} for name, part in net.named_parameters()])
    ids = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(1))
    seen = []
    for _ in range(3):
        found = net(ids, labels=ids, output_hidden_states=True)
        seen.append((found.hidden_states[1].detach(), found.logits.detach()))
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
    return torch.stack(
        [(after - before).square().mean().sqrt() for before, after in zip(seen[0], seen[2], strict=True)]
    )


def test_the_updates_of_mup_do_not_grow_with_the_width() -> None:
    """The coordinate check: with its learning rates, steps move all alike at all widths; without, ever more."""
    same = dict.fromkeys(POWERS, 0)
    growth = [
        changes(512, rule, powers) / changes(64, rule, powers)
        for rule, powers in (("mup", POWERS), ("mup", same), ("fan_in", same))
    ]
    assert ((growth[0] > 0.7) & (growth[0] < 1.4)).all()
    assert (growth[1] > 3).all() and (growth[2] > 2).all()


class Owner(nn.Module):
    """A module that fills with every random function and overrides what its part got."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(6, 6, bias=False)
        self.values = nn.ParameterList([nn.Parameter(torch.full((6, 6), torch.nan)) for _ in range(9)])

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.part.weight)
        fills = (
            nn.init.normal_,
            nn.init.uniform_,
            partial(nn.init.trunc_normal_, a=-0.7, b=0.7),  # redraws what lies beyond, several times
            partial(nn.init.trunc_normal_, a=-0.3, b=0.3),  # takes another way
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
    one, other = Padded(nn.Identity()), Padded(Owner())
    initialize(one, 0)
    initialize(other, 0)
    for index, (a, b) in enumerate(zip(one.owner.values, other.owner.values, strict=True)):
        assert torch.equal(a, b), index
        assert a.isfinite().all()
        assert not torch.equal(a, other.first.values[index]), index


class Filled(nn.Module):
    """A parameter that is filled several times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.value = times, nn.Parameter(torch.zeros(3))

    def reset_parameters(self) -> None:
        for _ in range(self.times):
            nn.init.normal_(self.value)


def test_every_fill_of_a_parameter_starts_anew() -> None:
    once, again = Filled(1), Filled(2)
    initialize(once, 0)
    initialize(again, 0)
    assert torch.equal(once.value, again.value)


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
