"""Every channel mixer with every preset is its formula, written out in float64: answers and all gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.evaluation.contract.subjects import shake
from paribus.nn.channel import ACTIVATIONS
from paribus.nn.component import CHANNELS, make_channel
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Placement

WIDTH = 16
ACTIVATION_FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "identity": lambda x: x,
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "relu": lambda x: torch.where(x > 0, x, 0),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "squared_relu": lambda x: torch.where(x > 0, x, 0) ** 2,
}
NORM_FORMULAS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "none": lambda x, norm: x,
    "rms_norm": lambda x, norm: norm.weight * x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6),
    "l2_norm": lambda x, norm: norm.weight * x / torch.sqrt((x**2).sum(-1, keepdim=True)),
}


def channel_of(name: str, causal: bool = True, **settings: Any) -> Any:
    """A channel mixer in float64 with noise on every parameter, so that nothing is zero or one by accident."""
    channel = make_channel({"name": name, **settings}, Placement(WIDTH, causal=causal))
    initialize(channel, seed=0)
    shake(channel)
    return channel.double()


def tokens_of(length: int, seed: int = 0) -> Tensor:
    """[2, length, WIDTH]."""
    draw = torch.Generator().manual_seed(seed + length)
    return torch.randn(2, length, WIDTH, generator=draw, dtype=torch.float64).requires_grad_()


def compare(channel: Any, formula: Callable[[Tensor], Tensor], length: int) -> None:
    """Answers and gradients, of the input and of every parameter, are those of the formula."""
    x, weights = tokens_of(length), tokens_of(length, seed=1).detach()
    leaves = {"x": x, **dict(channel.named_parameters())}
    results = []
    for y in (channel(x)[0], formula(x)):
        gradients = torch.autograd.grad((y * weights).sum(), list(leaves.values()), materialize_grads=True)
        results.append({"y": y.detach(), **dict(zip(leaves, gradients, strict=True))})
    got, expected = results
    for part, value in expected.items():
        torch.testing.assert_close(
            got[part], value, rtol=1e-9, atol=1e-10, msg=lambda text, part=part: f"{part}: {text}"
        )


def glu(channel: Any, x: Tensor) -> Tensor:
    act = ACTIVATION_FORMULAS[channel.config.activation]
    return (act(x @ channel.gate.weight.T) * (x @ channel.up.weight.T)) @ channel.output.weight.T


def mlp(channel: Any, x: Tensor) -> Tensor:
    return ACTIVATION_FORMULAS[channel.config.activation](x @ channel.up.weight.T) @ channel.output.weight.T


def series_informed(channel: Any, x: Tensor) -> Tensor:
    act, up = ACTIVATION_FORMULAS[channel.config.activation], x @ channel.up.weight.T
    h = up if channel.gate is None else x @ channel.gate.weight.T
    total = torch.zeros_like(h)
    for term in channel.terms:
        a, b = term.scale, term.shift
        total = total + (act(a * h + b) if channel.config.affine == "inside" else a * act(h + b))
    return (total if channel.gate is None else total * up) @ channel.output.weight.T


def grouped(channel: Any, x: Tensor) -> Tensor:
    act, groups = ACTIVATION_FORMULAS[channel.config.activation], channel.config.num_groups

    def dense(part: Any) -> Tensor:
        return torch.block_diag(*part.weight.chunk(groups)).T

    up = x @ dense(channel.up)
    h = act(up) if channel.gate is None else act(x @ dense(channel.gate)) * up
    return h @ dense(channel.output)


def rwkv(channel: Any, x: Tensor) -> Tensor:
    nothing = torch.zeros_like(x[:, :1])
    before, after = torch.cat([nothing, x[:, :-1]], 1), torch.cat([x[:, 1:], nothing], 1)
    other = before if channel.placement.causal else (before + after) / 2
    key = (1 - channel.key_mix) * x + channel.key_mix * other
    y = ACTIVATION_FORMULAS["squared_relu"](key @ channel.key.weight.T) @ channel.output.weight.T
    if channel.receptance is None:
        return y
    r = (1 - channel.receptance_mix) * x + channel.receptance_mix * other
    return ACTIVATION_FORMULAS["sigmoid"](r @ channel.receptance.weight.T) * y


def convolved(x: Tensor, matrices: list[Tensor], causal: bool, step: int = 1) -> Tensor:
    """y[t] = Σ_j matrices[j] x[t + step (j - before)], where that token exists."""
    T, before = x.shape[1], len(matrices) - 1 if causal else len(matrices) // 2
    rows = []
    for t in range(T):
        row = torch.zeros_like(x[:, 0] @ matrices[0].T)
        for j, matrix in enumerate(matrices):
            source = t + step * (j - before)
            if 0 <= source < T:
                row = row + x[:, source] @ matrix.T
        rows.append(row)
    return torch.stack(rows, 1)


def taps_of(weight: Tensor, taps: int, groups: int = 1) -> list[Tensor]:
    """The matrices [F, E] of a convolution's weight, one for each tap; groups see only themselves."""
    blocks = [group.unflatten(1, (taps, -1)) for group in weight.chunk(groups)]
    return [torch.block_diag(*(block[:, j] for block in blocks)) for j in range(taps)]


def convolution(channel: Any, x: Tensor) -> Tensor:
    config, causal = channel.config, channel.placement.causal
    act, norm = ACTIVATION_FORMULAS[config.activation], NORM_FORMULAS[config.norm]
    if config.depthwise:
        first = [channel.up.weight * channel.filters[:, j] for j in range(config.taps)]
        second = [channel.output.weight * channel.inner_filters[:, j] for j in range(config.taps)]
    else:
        first, second = taps_of(channel.up.weight, config.taps), taps_of(channel.output.weight, config.taps)
    return convolved(act(norm(convolved(x, first, causal), channel.norm)), second, causal)


def time_residue_exchange(channel: Any, x: Tensor) -> Tensor:
    config, causal = channel.config, channel.placement.causal
    act, norm, R = ACTIVATION_FORMULAS["leaky_relu"], NORM_FORMULAS[config.norm], config.residues
    h = convolved(x, taps_of(channel.up.weight, config.taps, config.num_groups), causal)
    h = act(norm(h, channel.norms[0]))
    weights = channel.middle.weight.chunk(R)
    ways = [convolved(h, taps_of(weight, config.middle_taps), causal, step=R) for weight in weights]
    h = torch.stack([ways[t % R][:, t] for t in range(x.shape[1])], 1)
    h = act(norm(h, channel.norms[1]))
    return convolved(h, taps_of(channel.output.weight, config.taps, config.num_groups), causal)


def mixture_of_experts(channel: Any, x: Tensor) -> Tensor:
    config, silu = channel.config, ACTIVATION_FORMULAS["silu"]
    p = torch.exp(x @ channel.router.weight.T)
    p = p / p.sum(-1, keepdim=True)
    least = p.sort(-1, descending=True).values[..., config.experts_per_token - 1 : config.experts_per_token]
    g = torch.where(p >= least, p, 0)
    if config.normalise:
        g = g / g.sum(-1, keepdim=True)
    y = torch.zeros_like(x)
    weights = [part.weight.chunk(config.num_experts) for part in (channel.gate, channel.up, channel.output)]
    for number, (gate, up, output) in enumerate(zip(*weights, strict=True)):
        y = y + g[..., number : number + 1] * ((silu(x @ gate.T) * (x @ up.T)) @ output.T)
    if channel.shared is not None:
        shared = channel.shared
        y = y + (silu(x @ shared.gate.weight.T) * (x @ shared.up.weight.T)) @ shared.output.weight.T
    return y


FORMULAS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "convolution": convolution,
    "glu": glu,
    "grouped": grouped,
    "mixture_of_experts": mixture_of_experts,
    "mlp": mlp,
    "rwkv": rwkv,
    "series_informed": series_informed,
    "time_residue_exchange": time_residue_exchange,
}
FURTHER: dict[str, list[dict[str, Any]]] = {
    "convolution": [{"taps": 1}, {"taps": 4, "activation": "silu"}],
    "mixture_of_experts": [{"num_experts": 3, "experts_per_token": 3}, {"num_shared_experts": 1}],
    "series_informed": [{"num_terms": 1}, {"num_terms": 3, "activation": "relu"}, {"affine": "outside", "gated": True}],
    "time_residue_exchange": [{"taps": 2, "middle_taps": 4, "residues": 3, "num_groups": 2}, {"residues": 1}],
}
"""Settings that no preset reaches."""


def cases() -> list[Any]:
    """Every name with its defaults, each of its presets, and its further settings."""
    found = []
    for name in CHANNELS.names():
        presets = [{"preset": preset} for preset in getattr(CHANNELS.module(name), "PRESETS", {})]
        for settings in ({}, *presets, *FURTHER.get(name, [])):
            title = "-".join([name, *(f"{key}={value}" for key, value in settings.items())])
            found.append(pytest.param(name, settings, id=title))
    return found


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("name", "settings"), cases())
def test_the_channel_is_its_formula(name: str, settings: dict[str, Any], causal: bool) -> None:
    channel = channel_of(name, causal, **settings)
    for length in (1, 21):
        compare(channel, lambda x: FORMULAS[name](channel, x), length)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_is_its_formula(name: str) -> None:
    x = torch.linspace(-3, 3, 60, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name](x), ACTIVATION_FORMULAS[name](x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "grouped", "num_groups": 3}, "width 16 is not divisible by num_groups 3"),
        ({"name": "grouped", "num_groups": 0}, "width 16 is not divisible by num_groups 0"),
        ({"name": "series_informed", "num_terms": 0}, "num_terms is 0; at least 1 is needed"),
        ({"name": "convolution", "taps": 0}, "taps is 0; at least 1 is needed"),
        ({"name": "convolution", "norm": "rms"}, "unknown norm 'rms'; did you mean 'rms_norm'"),
        ({"name": "time_residue_exchange", "residues": 0}, "residues is 0; at least 1 is needed"),
        ({"name": "time_residue_exchange", "num_groups": 5}, "width 16 is not divisible by num_groups 5"),
        ({"name": "mixture_of_experts", "experts_per_token": 9}, "experts_per_token is 9; from 1 to num_experts, 8"),
        ({"name": "mixture_of_experts", "experts_per_token": 0}, "experts_per_token is 0; from 1 to num_experts, 8"),
        ({"name": "mixture_of_experts", "experts_per_token": 1}, "experts_per_token 1 needs normalise false"),
        ({"name": "mixture_of_experts", "balance_loss": -1.0}, "balance_loss is -1.0; at least 0 is needed"),
        ({"name": "mlp", "activation": "tanh"}, "activation is 'tanh'; allowed: 'gelu'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make_channel(settings, Placement(WIDTH))
    assert "\n" not in str(refusal.value)


def test_one_term_as_it_begins_is_the_plain_activation() -> None:
    plain, series = (
        make_channel(settings, Placement(WIDTH))
        for settings in (
            {"name": "mlp", "expansion": 3.0},
            {"name": "series_informed", "expansion": 3.0, "num_terms": 1},
        )
    )
    for channel in (plain, series):
        initialize(channel, seed=0)
    x = tokens_of(5).detach().float()
    assert torch.equal(plain(x)[0], series(x)[0])


def test_further_terms_begin_small() -> None:
    for affine in ("inside", "outside"):
        channels = [
            make_channel({"name": "series_informed", "num_terms": terms, "affine": affine}, Placement(WIDTH))
            for terms in (1, 3)
        ]
        for channel in channels:
            initialize(channel, seed=0)
        one, three = (channel(tokens_of(50).float())[0] for channel in channels)
        assert 0 < (one - three).norm() < 0.1 * one.norm()
