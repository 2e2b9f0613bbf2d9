"""Mixers of the attention family against the formulas of their papers, written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paribus.evaluation.contract.subjects import shake
from paribus.nn.component import MIXERS, make_mixer
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Mixer, Placement

WIDTH, HEADS, LENGTH, LAYER = 32, 4, 13, 2
HEAD = WIDTH // HEADS
EXACT = 1e-12
FAMILY = [name for name in MIXERS.names() if name.endswith("attention")]
both = pytest.mark.parametrize("causal", [True, False])


def made(name: str, causal: bool, **settings: Any) -> Mixer:
    """With random weights, some way off from their initial values."""
    placement = Placement(width=WIDTH, layer=LAYER, num_layers=4, causal=causal)
    module = make_mixer({"name": name, **settings}, placement)
    initialize(module, seed=0)
    shake(module)
    return module.double()


def inputs() -> Tensor:
    return torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def heads(linear: nn.Module, x: Tensor, count: int = HEADS) -> Tensor:
    """[B, T, D] -> [B, H, T, K]."""
    y: Tensor = linear(x)
    return y.unflatten(-1, (count, -1)).transpose(1, 2)


def answer(module: Mixer, o: Tensor) -> Tensor:
    """W_o of the heads' answers [B, H, T, K]."""
    y: Tensor = module.output(o.transpose(1, 2).flatten(2))
    return y


def rotated(x: Tensor, base: float = 10_000.0) -> Tensor:
    """[..., T, K]: channels i and i + K/2 as a complex number, turned by the position times base^(-2i/K)."""
    half = x.shape[-1] // 2
    rates = torch.tensor([base ** (-2 * i / x.shape[-1]) for i in range(half)], dtype=torch.float64)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * torch.arange(x.shape[-2])[:, None] * rates)
    return torch.cat([turned.real, turned.imag], -1)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def softmax(scores: Tensor, causal: bool) -> Tensor:
    if causal:
        scores = scores.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf)
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def agree(got: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))


@both
@pytest.mark.parametrize("slot", ["none", "key", "value", "key_value"])
@pytest.mark.parametrize("normaliser", ["softmax", "softmax_one", "sink", "sigmoid", "relu", "softpick"])
def test_attention(normaliser: str, slot: str, causal: bool) -> None:
    gate = {"none": "none", "key": "head", "value": "channel", "key_value": "none"}[slot]
    chosen = {"normaliser": normaliser, "slot": slot, "output_gate": gate, "query_key_norm": slot == "key"}
    module, x = made("attention", causal, position="alibi", queries_per_key=2, **chosen), inputs()
    q = heads(module.query, x)
    k, v = (heads(part, x, 2).repeat_interleave(2, 1) for part in (module.key, module.value))
    if slot == "key":
        q, k = rms(q, module.query_norm.weight), rms(k, module.key_norm.weight)
    distance = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs()
    scores = q @ k.mT / math.sqrt(HEAD) - torch.tensor([2.0 ** (-2 * h) for h in range(1, 5)])[:, None, None] * distance
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    seen = seen.tril() if causal else seen
    n = seen.sum(-1, keepdim=True)
    if slot != "none":
        zeros = torch.zeros(2, HEAD, dtype=torch.float64)
        key, value = (zeros if t is None else t for t in (module.slot_key, module.slot_value))
        of_slot = (q @ key.repeat_interleave(2, 0)[..., None]) / math.sqrt(HEAD)
        scores, seen = torch.cat([of_slot, scores], -1), nn.functional.pad(seen, (1, 0), value=True)
        v = torch.cat([value.repeat_interleave(2, 0)[:, None].expand(2, -1, -1, -1), v], 2)
    e = scores.exp() * seen
    z = module.sink[:, None, None] if normaliser == "sink" else None
    weights = {
        "softmax": lambda: e / e.sum(-1, keepdim=True),
        "softmax_one": lambda: e / (1 + e.sum(-1, keepdim=True)),
        "sink": lambda: e / (z.exp() + e.sum(-1, keepdim=True)),
        "sigmoid": lambda: (scores - n.double().log()).sigmoid() * seen,
        "relu": lambda: scores.relu() * seen / n,
        "softpick": lambda: (e - 1).relu() / ((e - 1) * seen).abs().sum(-1, keepdim=True),
    }[normaliser]()
    o = weights @ v
    if gate != "none":
        o = o * heads(module.gate, x).sigmoid()
    agree(module(x)[0], answer(module, o))


def shifted(t: Tensor, gate: Tensor, causal: bool) -> Tensor:
    """(1 − α) t + α times the token before [B, H, T, K]; with two directions, times the mean of both neighbours."""
    before, after = nn.functional.pad(t, (0, 0, 1, 0))[:, :, :-1], nn.functional.pad(t, (0, 0, 0, 1))[:, :, 1:]
    return (1 - gate) * t + gate * (before if causal else (before + after) / 2)


@both
@pytest.mark.parametrize("preset", ["pro", "rotary"])
def test_forgetting_attention(preset: str, causal: bool) -> None:
    module, x = made("forgetting_attention", causal, preset=preset), inputs()
    q, k, v = (heads(part, x) for part in (module.query, module.key, module.value))
    if preset == "pro":
        k = shifted(k, heads(module.key_shift, x).sigmoid(), causal)
        v = shifted(v, heads(module.value_shift, x).sigmoid(), causal)
        q, k = rms(q, module.query_norm.weight), rms(k, module.key_norm.weight)
    else:
        q, k = rotated(q, 500_000.0), rotated(k, 500_000.0)
    f = module.forget(x).sigmoid().transpose(1, 2)  # B H T
    forgotten = [[f[:, :, min(s, t) + 1 : max(s, t) + 1].log().sum(-1) for s in range(LENGTH)] for t in range(LENGTH)]
    bias = torch.stack([torch.stack(row, -1) for row in forgotten], -2)
    o = softmax(q @ k.mT / math.sqrt(HEAD) + bias, causal) @ v
    if preset == "pro":
        o = rms(o, module.norm.weight) * heads(module.gate, x).sigmoid()
    agree(module(x)[0], answer(module, o))


@both
def test_stick_breaking_attention(causal: bool) -> None:
    module, x = made("stick_breaking_attention", causal, preset="released", queries_per_key=2), inputs()
    q = heads(module.query, x)
    k, v = (heads(part, x, 2).repeat_interleave(2, 1) for part in (module.key, module.value))
    share = (q @ k.mT / math.sqrt(HEAD)).sigmoid()
    answers = []
    for t in range(LENGTH):
        o = torch.zeros(2, HEADS, HEAD, dtype=torch.float64)
        for side in (range(t - 1, -1, -1),) if causal else (range(t - 1, -1, -1), range(t + 1, LENGTH)):
            left = torch.ones(2, HEADS, 1, dtype=torch.float64)
            for s in side:
                o = o + left * share[:, :, t, s, None] * v[:, :, s]
                left = left * (1 - share[:, :, t, s, None])
            o = o + left * module.rest
        answers.append(o)
    agree(module(x)[0], answer(module, rms(torch.stack(answers, 2), module.norm.weight)))


@both
def test_differential_attention(causal: bool) -> None:
    module, x = made("differential_attention", causal), inputs()
    q, k = (rotated(heads(part, x, 2 * HEADS)) for part in (module.query, module.key))
    weights = softmax(q @ k.mT / math.sqrt(HEAD // 2), causal)
    start = 0.8 - 0.6 * math.exp(-0.3 * LAYER)
    first, second = (module.lambda_query * module.lambda_key).sum(-1).exp()
    o = (weights[:, 0::2] - (first - second + start) * weights[:, 1::2]) @ heads(module.value, x)
    agree(module(x)[0], answer(module, (1 - start) * rms(o, module.norm.weight)))


@both
def test_normalised_attention(causal: bool) -> None:
    module, x = made("normalised_attention", causal), inputs()
    scale = module.scale[:, None] * math.sqrt(WIDTH)
    q, k = (rotated(heads(part, x)) for part in (module.query, module.key))
    q, k = (scale * t / t.norm(dim=-1, keepdim=True) for t in (q, k))
    o = softmax(math.sqrt(HEAD) * q @ k.mT, causal) @ heads(module.value, x)
    agree(module(x)[0], answer(module, o))


@both
def test_latent_attention(causal: bool) -> None:
    module, x = made("latent_attention", causal, query_latent=0.5), inputs()
    c = rms(module.latent(x), module.latent_norm.weight)
    q = heads(module.query, rms(module.query_latent(x), module.query_norm.weight))
    shared = rotated(module.rotary_key(x))[:, None]  # B 1 T P
    scores = q[..., :HEAD] @ heads(module.key, c).mT + rotated(q[..., HEAD:]) @ shared.mT
    o = softmax(scores / math.sqrt(HEAD + HEAD // 2), causal) @ heads(module.value, c)
    agree(module(x)[0], answer(module, o))


def test_differential_attention_that_subtracts_nothing_is_attention() -> None:
    """With λ = 0, one number for all of a head's scale, and the norm undone: an attention with wide values."""
    module, x = made("differential_attention", True), inputs()
    with torch.no_grad():
        module.lambda_query.copy_(torch.tensor([[0.0], [1.0]]).expand(2, HEAD // 2))
        module.lambda_key.fill_(2 * math.log(1 + module.lambda_start) / HEAD)
    q, k = (rotated(heads(part, x, 2 * HEADS))[:, 0::2] for part in (module.query, module.key))
    o = softmax(q @ k.mT / math.sqrt(HEAD // 2), True) @ heads(module.value, x)
    expected = answer(module, (1 - module.lambda_start) * rms(o, module.norm.weight))
    agree(module(x)[0], expected)


@pytest.mark.parametrize("name", FAMILY)
def test_every_parameter_of_every_preset_learns(name: str) -> None:
    for preset in getattr(MIXERS.module(name), "PRESETS", {}):
        for causal in (True, False):
            module = make_mixer({"name": name, "preset": preset}, Placement(width=WIDTH, causal=causal))
            initialize(module, seed=0)
            module(inputs().float())[0].square().sum().backward()
            for part, parameter in module.named_parameters():
                assert parameter.grad is not None and parameter.grad.isfinite().all(), f"{preset}: {part}"
                assert parameter.grad.any(), f"{preset}: {part}"


@pytest.mark.parametrize("name", ["forgetting_attention", "latent_attention"])
def test_the_papers_initial_values(name: str) -> None:
    spread = {"forgetting_attention": 0.02, "latent_attention": 0.006}[name]
    module = make_mixer({"name": name, "initialization": "paper"}, Placement(width=256))
    initialize(module, seed=0)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            assert abs(float(part.weight.detach().std()) / spread - 1) < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "attention", "num_heads": 3}, "width 32 is not divisible by num_heads 3"),
        ({"name": "attention", "queries_per_key": 3}, "queries_per_key 3 does not divide num_heads 4"),
        ({"name": "attention", "normaliser": "softmin"}, "normaliser is 'softmin'; allowed: 'softmax', 'softmax_one'"),
        ({"name": "stick_breaking_attention", "queries_per_key": 0}, "queries_per_key 0 does not divide num_heads 4"),
        ({"name": "differential_attention", "num_heads": 16}, "keys of even width; width / 2 num_heads is 1"),
        ({"name": "normalised_attention", "num_heads": 32}, "even head width; width / num_heads is 1"),
        ({"name": "forgetting_attention", "num_heads": 32, "position": "rotary"}, "even head width"),
        ({"name": "latent_attention", "rotary_width": 0.4}, "rotary_width 0.4 of 8 is no even number of channels"),
        ({"name": "latent_attention", "key_latent": 0.01}, "key_latent 0.01 and query_latent 0.0 of 32 channels"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mixer(settings, Placement(width=WIDTH))
