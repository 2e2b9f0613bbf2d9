"""Channel mixers, residual schemes, norms, positions and losses give on the GPU what they give on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paribus.evaluation.contract.subjects import CHANNEL, NEIGHBOUR, agree, build, shake, tokens
from paribus.nn.channel import Channel
from paribus.nn.component import CHANNELS, RESIDUALS
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.loss import IGNORE, linear_cross_entropy
from paribus.nn.mixer import Mixer
from paribus.nn.norm import NORMS, make_norm
from paribus.nn.position_catalogue import POSITIONS
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.nn.tasks.image_classification import ParibusForImageClassification
from tests.gpu.both import CPU, as_exact_in_float32, same_in_float64
from tests.unit.nn.kernel_cases import random_segments, real

pytestmark = pytest.mark.gpu

T, VOCABULARY = 33, 61


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", CHANNELS.names())
def test_channels(name: str, causal: bool, device: torch.device) -> None:
    alone = issubclass(CHANNELS.component(name, Mixer), Channel)

    def call(module: nn.Module, inputs: dict[str, Any]) -> Any:
        found = module(inputs["x"]) if alone else module(inputs["x"], segments=inputs["segments"])
        return real(found[0], inputs["segments"])

    module = build(CHANNEL if alone else NEIGHBOUR, name, causal=causal, longest=T)
    inputs = {"x": tokens(3, T), "segments": random_segments(3, T)}
    same_in_float64(name, module, inputs, call, device)
    as_exact_in_float32(name, module, inputs, call, device)


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str, device: torch.device) -> None:
    norm = make_norm(name, 24)
    initialize(norm, seed=0)
    shake(norm)
    inputs = {"x": 3 * tokens(2, 5, width=24)}
    same_in_float64(name, norm, inputs, lambda module, given: module(given["x"]), device, 1e-12)
    as_exact_in_float32(name, norm, inputs, lambda module, given: module(given["x"]), device)


def language_model(**settings: Any) -> ParibusForCausalLM:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": T}
    model = ParibusForCausalLM(
        ParibusConfig(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0, **settings)  # type: ignore[arg-type]
    )
    initialize(model, seed=0)
    shake(model)  # a scheme that starts as the identity would hide what its branches do
    return model.train()


def classifier(**settings: Any) -> ParibusForImageClassification:
    image, sizes = {"size": 8, "patch_size": 2}, {"hidden_size": 32, "num_hidden_layers": 2}
    task = {"name": "image_classification"}
    model = ParibusForImageClassification(
        ParibusConfig(**sizes, image=image, task=task, causal=False, **settings)  # type: ignore[arg-type]
    )
    initialize(model, seed=0)
    shake(model)
    return model


def text() -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (3, T), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": random_segments(3, T)}


def learn(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """The loss with its parts, and the logits where something is to be read."""
    targets = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE)
    output = model(**inputs, targets=targets, z_loss=1e-3)
    return output.loss, real(output.logits, inputs["attention_mask"])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", RESIDUALS.names())
def test_residuals(name: str, recompute: bool, device: torch.device) -> None:
    block = {"mixer": {"name": "gla"}, "channel": {"name": "glu"}, "residual": {"name": name}}
    model = language_model(blocks={"main": block})
    if recompute:
        model.model.gradient_checkpointing = True
    same_in_float64(name, model, text(), learn, device)


@pytest.mark.parametrize("name", RESIDUALS.names())
def test_dropout_is_drawn_again_where_a_block_is_recomputed(name: str, device: torch.device) -> None:
    block = {"mixer": {"name": "attention"}, "channel": {"name": "glu"}, "residual": {"name": name}, "dropout": 0.5}
    gradients = []
    for recompute in (False, True):
        model = language_model(blocks={"main": block}).to(device)
        if recompute:
            model.model.gradient_checkpointing = True
        torch.manual_seed(3)
        given = {key: value.to(device) for key, value in text().items()}
        learn(model, given)[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            agree(name, one, other, 1e-4)


@pytest.mark.parametrize("name", POSITIONS)
def test_positions(name: str, device: torch.device) -> None:
    """In the first place of the catalogue that takes it."""
    owner, _, setting = POSITIONS[name].places[0].partition(".")
    block = {"mixer": {"name": "attention"}, "channel": {"name": "glu"}}
    settings: dict[str, Any] = {"position": name}
    if owner != "model":
        settings = {}
        block["mixer"] = {"name": owner, setting: name}
    if name.endswith("_2d"):  # of the rows and columns of an image
        model = classifier(blocks={"main": block}, **settings)
        pixels = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
        same_in_float64(name, model, {"pixel_values": pixels}, lambda module, given: module(**given).logits, device)
    else:
        same_in_float64(name, language_model(blocks={"main": block}, **settings), text(), learn, device)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_loss(z_loss: float, device: torch.device) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=draw, dtype=torch.float64) for n in (300, VOCABULARY))
    targets = torch.randint(-1, VOCABULARY, (300,), generator=draw).clamp(min=-1)
    targets = targets.masked_fill(targets < 0, IGNORE)
    found = []
    for place in (CPU, device):
        leaves = [x.to(place).requires_grad_() for x in (hidden, weight)]
        loss, cross_entropy = linear_cross_entropy(*leaves, targets.to(place), z_loss=z_loss)
        found.append([x.cpu() for x in (loss, cross_entropy, *torch.autograd.grad(loss, leaves))])
    for there, here in zip(found[1], found[0], strict=True):
        agree("loss", there, here, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_many_tokens_in_half_precision(dtype: torch.dtype, device: torch.device) -> None:
    """A gradient is one of 16,384 shares of a mean, which fp16 cannot hold; it must not be lost on the way."""
    count, width, vocabulary = 16_384, 64, 8_192
    hidden, weight = torch.randn(count, width, device=device), torch.randn(vocabulary, width, device=device) / 8
    targets = torch.randint(vocabulary, (count,), device=device)
    exact = [x.clone().requires_grad_() for x in (hidden, weight)]
    functional.cross_entropy(exact[0] @ exact[1].T, targets).backward()
    leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
    with torch.autocast(device.type, dtype=dtype):
        loss, _ = linear_cross_entropy(*leaves, targets)
    (loss * 2.0**16).backward()
    for found, expected in zip(leaves, exact, strict=True):
        assert found.grad is not None and expected.grad is not None
        error = (found.grad / 2.0**16 - expected.grad).norm() / expected.grad.norm()
        assert error < 0.02, f"{error:.2e}"
