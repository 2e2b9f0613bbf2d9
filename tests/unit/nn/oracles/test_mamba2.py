"""Mamba-2 is transformers' Mamba-2: the same weights give the same answers, gradients, and tokens one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2ForCausalLM, Mamba2Mixer

from paribus.evaluation.contract.subjects import in_pieces
from paribus.nn.component import make_mixer
from paribus.nn.mixer import Placement

WIDTH, HEADS, STATE, VOCABULARY, LAYERS = 16, 4, 6, 31, 3


def config_of(groups: int) -> Mamba2Config:
    return Mamba2Config(
        num_heads=HEADS,
        head_dim=2 * WIDTH // HEADS,
        hidden_size=WIDTH,
        state_size=STATE,
        n_groups=groups,
        vocab_size=VOCABULARY,
        num_hidden_layers=LAYERS,
        chunk_size=32,
        residual_in_fp32=False,
    )


def shaken(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double()


def ours(theirs: Mamba2Mixer, groups: int) -> Any:
    """Our mixer with the weights of theirs."""
    mixer = make_mixer(
        {"name": "mamba2", "num_heads": HEADS, "state_width": STATE, "num_groups": groups}, Placement(WIDTH)
    )
    weights = {
        "input.weight": theirs.in_proj.weight,
        "convolution": theirs.conv1d.weight[:, 0],
        "convolution_bias": theirs.conv1d.bias,
        "step_bias": theirs.dt_bias,
        "log_rate": theirs.A_log,
        "skip": theirs.D[:, None],
        "output.weight": theirs.out_proj.weight,
    }
    for group, weight in enumerate(theirs.norm.weight.chunk(groups)):
        weights[f"norms.{group}.weight"] = weight
    mixer.load_state_dict(weights, strict=True)
    return mixer.double()


def pair(groups: int) -> tuple[Mamba2Mixer, Any]:
    theirs = shaken(Mamba2Mixer(config_of(groups), layer_idx=0))
    return theirs, ours(theirs, groups)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 7, 63, 65, 150])
def test_outputs_and_gradients_are_the_same(length: int, groups: int) -> None:
    theirs, mixer = pair(groups)
    x = torch.randn(2, length, WIDTH, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, length, WIDTH, dtype=torch.float64)
    y, expected = mixer(x)[0], theirs(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)  # theirs computes in float32 inside
    parts = [mixer.input.weight, mixer.convolution, mixer.step_bias, mixer.log_rate, mixer.skip, mixer.output.weight]
    same = [theirs.in_proj.weight, theirs.conv1d.weight, theirs.dt_bias, theirs.A_log, theirs.D, theirs.out_proj.weight]
    got = torch.autograd.grad((y * weights).sum(), [x, *parts])
    wanted = torch.autograd.grad((expected * weights).sum(), [x, *same])
    for one, other in zip(got, wanted, strict=True):
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(one.squeeze(), other.squeeze(), rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("groups", [1, 2])
def test_left_padding_is_the_same(groups: int) -> None:
    theirs, mixer = pair(groups)
    x = torch.randn(2, 20, WIDTH, dtype=torch.float64)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :7] = 0
    y, expected = mixer(x, segments=mask)[0], theirs(x, attention_mask=mask)
    torch.testing.assert_close(y[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_token_by_token_after_a_prompt_is_the_same(groups: int) -> None:
    theirs, mixer = pair(groups)
    x = torch.randn(2, 30, WIDTH, dtype=torch.float64)
    cache = DynamicCache(config=config_of(groups))
    with torch.no_grad():
        expected = [theirs(x[:, :17], cache_params=cache)]
        expected += [theirs(x[:, t : t + 1], cache_params=cache) for t in range(17, 30)]
        got = in_pieces(mixer, x, None, range(17, 30))
    torch.testing.assert_close(got, torch.cat(expected, 1), rtol=1e-4, atol=1e-5)


def test_a_whole_model_gives_the_same_logits() -> None:
    model = shaken(Mamba2ForCausalLM(config_of(2))).eval()
    mixers = [ours(layer.mixer, 2) for layer in model.backbone.layers]

    def normed(x: Tensor, norm: nn.Module) -> Tensor:
        return nn.functional.rms_norm(x, (WIDTH,), norm.weight, 1e-5)

    ids = torch.randint(VOCABULARY, (2, 40))
    x = model.backbone.embeddings(ids)
    for mixer, layer in zip(mixers, model.backbone.layers, strict=True):
        x = x + mixer(normed(x, layer.norm))[0]
    logits = model.lm_head(normed(x, model.backbone.norm_f))
    torch.testing.assert_close(logits.float(), model(ids).logits, rtol=1e-4, atol=1e-4)
