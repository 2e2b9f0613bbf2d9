"""The model of image classification: what it pools, what it minimises, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.nn.absolute_positions import ABSOLUTE_POSITIONS
from paribus.nn.backbone import ParibusModel
from paribus.nn.component import MIXERS
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.tasks.image_classification import ParibusForImageClassification

CLASSES = 4


def config_of(
    mixer: str = "attention", *, class_token: bool = False, channel: str = "glu", **values: Any
) -> ParibusConfig:
    """Images of 4 x 4 patches; as many positions as tokens."""
    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "max_position_embeddings": 16 + class_token,
        "blocks": {"main": {"mixer": {"name": mixer}, "channel": {"name": channel}}},
        "causal": False,
        "task": {"name": "image_classification", "num_classes": CLASSES},
        "image": {"size": 8, "patch_size": 2, "num_channels": 1, "class_token": class_token},
    }
    return ParibusConfig(**settings | values)


def model_of(*arguments: Any, **values: Any) -> ParibusForImageClassification:
    model = ParibusForImageClassification(config_of(*arguments, **values))
    initialize(model, seed=0)
    return model.eval()


def pixels(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("mixer", MIXERS.names())
def test_every_mixer_classifies(mixer: str, class_token: bool) -> None:
    model = model_of(mixer, class_token=class_token)
    images = pixels().requires_grad_()
    output = model(pixel_values=images, labels=torch.tensor([0, 3, 1]))
    assert output.logits.shape == (3, CLASSES)
    hidden = model.model(pixel_values=images).last_hidden_state
    assert hidden.shape == (3, 16 + class_token, 32)
    features = hidden[:, 16] if class_token else hidden.mean(1)
    torch.testing.assert_close(output.features, features)
    torch.testing.assert_close(output.logits, features @ model.head.weight.T + model.head.bias)
    output.loss.backward()
    assert images.grad is not None
    assert bool((images.grad.abs().amax((1, 2, 3)) > 0).all()), "the class depends on the image"


@pytest.mark.parametrize("position", ABSOLUTE_POSITIONS)
def test_positions_are_added_to_patches_alone(position: str) -> None:
    model = model_of(class_token=True, position=position)
    embedded = model.model.embedding(pixels())
    first = model(pixel_values=pixels(), output_hidden_states=True).hidden_states[0]
    assert model.model.class_token is not None
    assert torch.equal(first[:, 16], model.model.class_token.vector.expand(3, 32))
    added = first[:, :16] - embedded
    assert added.abs().amax(-1).min() > 0
    torch.testing.assert_close(added[0], added[1])


def test_an_embedded_image_is_the_image() -> None:
    model = model_of(class_token=True, position="learned_2d")
    embedded = model.model.embedding(pixels())
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, model(pixel_values=pixels()).logits)


def test_the_backbone_alone_gives_a_token_more_than_patches() -> None:
    backbone = ParibusModel(config_of(class_token=True))
    initialize(backbone, seed=0)
    assert backbone(pixel_values=pixels()).last_hidden_state.shape == (3, 17, 32)


def cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """-1/B Σ_b Σ_c p[b, c] ln softmax(logits[b])[c]."""
    total = torch.zeros((), dtype=logits.dtype)
    for row, chances in zip(logits, probabilities, strict=True):
        odds = row.exp() / row.exp().sum()
        for chance, odd in zip(chances, odds, strict=True):
            total = total - chance * odd.log()
    return total / len(logits)


def test_the_loss_is_the_cross_entropy_of_classes_or_probabilities() -> None:
    model = model_of()
    classes = torch.tensor([0, 3, 1])
    soft = torch.rand(3, CLASSES).softmax(-1)
    for labels, chances in ((classes, torch.eye(CLASSES)[classes]), (soft, soft)):
        output = model(pixel_values=pixels(), labels=labels)
        expected = cross_entropy(output.logits, chances)
        torch.testing.assert_close(output.loss, expected)
        found = torch.autograd.grad(output.loss, model.head.weight, retain_graph=True)
        torch.testing.assert_close(found, torch.autograd.grad(expected, model.head.weight))


def test_in_training_the_loss_is_the_sum_of_its_parts() -> None:
    model = model_of(channel="mixture_of_experts").train()
    output = model(pixel_values=pixels(), labels=torch.tensor([0, 3, 1]))
    assert next(iter(output.losses)) == "cross_entropy"
    assert len(output.losses) > 1
    torch.testing.assert_close(output.loss, torch.stack(list(output.losses.values())).sum())
    assert model.eval()(pixel_values=pixels(), labels=torch.tensor([0, 3, 1])).losses is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": {"name": "image_classification", "num_classes": 1}}, "num_classes is 1; at least 2"),
        ({"task": {"name": "image_classification", "classes": 3}}, "unknown key 'classes'; did you mean 'num_classes'"),
        ({"image": None}, "image is null; the task image_classification reads images and needs its sizes"),
        ({"causal": True}, "causal is true; the task image_classification needs false"),
        ({"max_position_embeddings": 15}, "max_position_embeddings is 15; an image has 16 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParibusForImageClassification(config_of(**values))


@pytest.mark.parametrize("given", [{}, {"pixel_values": 1, "inputs_embeds": 1}, {"input_ids": 1}])
def test_anything_but_one_image_is_refused(given: dict[str, Any]) -> None:
    inputs = {"pixel_values": pixels(), "inputs_embeds": torch.zeros(3, 16, 32), "input_ids": torch.zeros(3, 16).long()}
    with pytest.raises(ValueError, match="pass exactly one of pixel_values and inputs_embeds, and no input_ids"):
        model_of().model(**{name: inputs[name] for name in given})
