"""The role of every parameter of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paribus.nn.component import CHANNELS, MIXERS, RESIDUALS
from paribus.nn.model_settings import read_model_config
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.optim.roles import ROLES, parameter_roles
from tests.unit.optim.toy import Toy

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 16}


def model(mixer: Any = "attention", **settings: Any) -> ParibusForCausalLM:
    block = {"mixer": {"name": mixer}, "channel": {"name": "glu"}, **settings.pop("block", {})}
    with torch.device("meta"):
        return ParibusForCausalLM(read_model_config({**SIZES, "blocks": {"main": block}, **settings}))


def test_the_toy() -> None:
    assert parameter_roles(Toy()) == {
        "model.embedding.table.weight": "embedding",
        "model.blocks.0.mixer.up.weight": "matrix",
        "model.blocks.0.mixer.up.bias": "vector",
        "model.blocks.0.mixer.output.weight": "matrix",
        "model.blocks.0.mixer.convolution": "matrix",
        "model.blocks.0.mixer.stack": "matrix",
        "model.blocks.0.mixer.skip": "gate",
        "model.blocks.0.mixer.log_rate": "gate",
        "model.norm.weight": "vector",
        "model.norm.bias": "vector",
        "head.weight": "head",
    }


def test_embeddings_and_heads() -> None:
    settings = {"embedding": {"rank": 4}, "position": "learned"}
    tied = parameter_roles(model(**settings, tie_word_embeddings=True))
    assert {name for name, role in tied.items() if role == "embedding"} == {
        "model.embedding.table.weight",
        "model.embedding.up.weight",
        "model.position.table",
    }
    assert {name for name, role in tied.items() if role == "head"} == {"reduction.weight"}
    loose = parameter_roles(model(**settings, tie_word_embeddings=False))
    assert {name for name, role in loose.items() if role == "head"} == {"head.weight"}


@pytest.mark.parametrize(
    ("mixer", "name", "role"),
    [
        ("gla", "decay.up.weight", "matrix"),
        ("gla", "decay.bias", "gate"),
        ("hgrn2", "decay.bound.weight", "gate"),
        ("mamba2", "log_rate", "gate"),
        ("mamba2", "step_bias", "gate"),
        ("mamba2", "skip", "gate"),
        ("mamba2", "convolution", "matrix"),
        ("mamba2", "convolution_bias", "vector"),
        ("gmlp", "spatial", "matrix"),
        ("gmlp", "spatial_bias", "vector"),
        ("rwkv6", "mixes", "vector"),
        ("rwkv6", "mix_up", "matrix"),
        ("rwkv6", "norm.bias", "vector"),
        ("rg_lru", "input_gate", "matrix"),
    ],
)
def test_parts_of_mixers(mixer: str, name: str, role: str) -> None:
    assert parameter_roles(model(mixer))[f"model.blocks.1.mixer.{name}"] == role


@pytest.mark.parametrize("kind", ["mixer", "channel", "residual"])
def test_every_parameter_of_every_component_has_a_role_that_fits(kind: str) -> None:
    for name in {"mixer": MIXERS, "channel": CHANNELS, "residual": RESIDUALS}[kind].names():
        built = model(name) if kind == "mixer" else model(block={kind: {"name": name}})
        roles = parameter_roles(built)
        modules = dict(built.named_modules())
        assert roles.keys() == {key for key, _ in built.named_parameters()}
        for key, parameter in built.named_parameters():
            assert roles[key] in ROLES
            if parameter.dim() < 2:
                assert roles[key] in ("vector", "gate"), key
            owner, _, own_name = key.rpartition(".")
            if key.startswith("model.blocks") and isinstance(modules[owner], torch.nn.Linear) and own_name == "weight":
                assert roles[key] == "matrix", key
