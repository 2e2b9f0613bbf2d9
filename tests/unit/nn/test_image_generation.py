"""The model of image generation: its condition, its first velocity, its loss, its rows, and what it refuses."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from paribus.evaluation.contract.subjects import shake
from paribus.nn.config import ParibusConfig
from paribus.nn.flow import sample_flow
from paribus.nn.initialization import INITIALIZATIONS, initialize
from paribus.nn.patches import from_patches
from paribus.nn.tasks.image_generation import ParibusForImageGeneration

WIDTH, CLASSES = 16, 3


def config(**changes: Any) -> ParibusConfig:
    block = {"mixer": {"name": "attention"}, "channel": {"name": "glu"}, "residual": {"name": "adaln_zero"}}
    settings = {
        "task": {"name": "image_generation", "num_classes": CLASSES},
        "image": {"size": 8, "patch_size": 4, "num_channels": 3},
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "max_position_embeddings": 8,
        "position": "learned",
        "causal": False,
        "blocks": {"main": block},
        **changes,
    }
    return ParibusConfig(**settings)


def make(shaken: bool = True, rule: str = "fan_in") -> ParibusForImageGeneration:
    model = ParibusForImageGeneration(config(initialization=rule))
    initialize(model, seed=0, rule=rule)
    if shaken:
        shake(model)
    return model.double()


@pytest.fixture
def arguments() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels, velocity = (torch.randn(4, 3, 8, 8, generator=generator).double() for _ in range(2))
    times = torch.tensor([0.0, 0.25, 0.8, 1.0]).double()
    return {"pixel_values": pixels, "times": times, "classes": torch.tensor([0, 2, 3, 1]), "velocity": velocity}


def test_the_condition_is_its_formula(arguments: dict[str, Tensor]) -> None:
    part = make().condition
    found = part(arguments["times"], arguments["classes"])
    for row, (t, of) in enumerate(zip(arguments["times"].tolist(), arguments["classes"].tolist(), strict=True)):
        angles = [1000 * t * 10 ** (-4 * i / 128) for i in range(128)]
        waves = torch.tensor([*map(math.cos, angles), *map(math.sin, angles)], dtype=torch.float64)
        inner = part.time_in.weight @ waves + part.time_in.bias
        expected = part.time_out.weight @ functional.silu(inner) + part.time_out.bias + part.table.weight[of]
        torch.testing.assert_close(found[row], expected, rtol=1e-9, atol=1e-9)


def test_the_velocity_is_read_from_modulated_tokens(arguments: dict[str, Tensor]) -> None:
    model = make().eval()
    c = model.condition(arguments["times"], arguments["classes"])
    x = model.model(pixel_values=arguments["pixel_values"], condition=c).last_hidden_state
    scale, shift = (functional.silu(c) @ model.modulation.weight.T + model.modulation.bias)[:, None].chunk(2, -1)
    patches = ((1 + scale) * x + shift) @ model.head.weight.T + model.head.bias
    output = model(**arguments)
    torch.testing.assert_close(output.velocity, from_patches(patches, model.config.image_config))
    expected = (output.velocity - arguments["velocity"]).square().mean()
    torch.testing.assert_close(output.loss.double(), expected, rtol=1e-5, atol=0)
    assert model.train()(**arguments).losses.keys() == {"flow"}


@pytest.mark.parametrize("rule", INITIALIZATIONS)
def test_the_first_velocity_is_zero_whatever_the_rule(rule: str, arguments: dict[str, Tensor]) -> None:
    assert not make(shaken=False, rule=rule)(**arguments).velocity.any()


def test_rows_are_made_for_their_own_time_and_class(arguments: dict[str, Tensor]) -> None:
    model = make().eval()
    together = model(**arguments).velocity
    for row in range(4):
        alone = model(**{key: value[row : row + 1] for key, value in arguments.items()}).velocity
        torch.testing.assert_close(together[row : row + 1], alone)
    for key in ("times", "classes"):
        other = {**arguments, key: arguments[key].flip(0)}
        assert not torch.isclose(model(**other).velocity, together).flatten(1).all(1).any(), key


def test_checkpointing_gives_equal_gradients_of_the_condition_too(arguments: dict[str, Tensor]) -> None:
    plain = make().train()
    saving = copy.deepcopy(plain)
    saving.activation_checkpointing_enable()
    for model in (plain, saving):
        model(**arguments).loss.backward()
    found = dict(saving.named_parameters())
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        torch.testing.assert_close(found[name].grad, parameter.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_saved_and_loaded(arguments: dict[str, Tensor], tmp_path: Path) -> None:
    model = make().eval()
    model.save_pretrained(tmp_path)
    loaded = ParibusForImageGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(**arguments).velocity, model(**arguments).velocity)


def test_samples_flow_along_the_velocity(arguments: dict[str, Tensor]) -> None:
    model, how = make().eval(), {"steps": 3, "solver": "heun", "guidance": 2.0}
    noise, classes = arguments["pixel_values"], torch.tensor([0, 1, 2, 0])
    expected = sample_flow(lambda *given: model(*given).velocity, noise, classes, CLASSES, **how)
    assert torch.equal(model.sample(noise, classes, **how), expected)
    assert not expected.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"blocks": {"main": {"mixer": {"name": "attention"}, "channel": None}}},
            "block 'main': residual is 'pre'; the task image_generation needs one that reads the time and the class: "
            "'adaln_zero'",
        ),
        (
            {"image": {"size": 8, "patch_size": 4, "class_token": True}},
            "model: image: class_token is true; the task image_generation has none, false is needed",
        ),
        ({"causal": True}, "model: causal is true; the task image_generation needs false"),
        ({"image": None}, "model: image is null; the task image_generation reads images and needs its sizes"),
        (
            {"task": {"name": "image_generation", "num_classes": 0}},
            "task image_generation: num_classes is 0; at least 1 is needed",
        ),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        ParibusForImageGeneration(config(**changes))
    assert str(caught.value) == message
