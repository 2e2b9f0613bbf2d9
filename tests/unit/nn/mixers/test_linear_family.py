"""Linear attention without learned gates: each mixer against its paper's formula, written out over all pairs of tokens.

The formulas are quadratic and in float64; outputs and the gradient of the input are compared, in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paribus.evaluation.contract.subjects import shake, tokens
from paribus.nn.component import make_mixer
from paribus.nn.features import FEATURES
from paribus.nn.initialization import initialize
from paribus.nn.kernels.recurrence import recurrence
from paribus.nn.mixer import Mixer, Placement
from paribus.nn.positions import rotary_tables, rotate
from paribus.nn.relative_positions import RelativePositions
from paribus.nn.segments import resolve
from paribus.nn.weighted_mean import EPSILON, weighted_mean

WIDTH, HEADS, LONGEST = 16, 2, 128
LENGTHS = (1, 7, 65)
Formula = Callable[[Any, Tensor], Tensor]


def mixer_of(name: str, causal: bool = True, layer: int = 1, loud: bool = True, **settings: Any) -> Any:
    placement = Placement(WIDTH, layer=layer, num_layers=4, causal=causal, max_length=LONGEST)
    mixer = make_mixer({"name": name, "num_heads": HEADS, **settings}, placement)
    initialize(mixer, seed=0)
    if loud:
        shake(mixer)
    return mixer.double()


def heads(x: Tensor) -> Tensor:
    """[B, T, D] -> [B, H, T, K]."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def joined(o: Tensor) -> Tensor:
    """[B, H, T, V] -> [B, T, D]."""
    return o.transpose(1, 2).flatten(2)


def distances(T: int) -> Tensor:
    """t - s, [T, T]."""
    steps = torch.arange(T, dtype=torch.float64)
    return steps[:, None] - steps


def seen(mixer: Mixer, weights: Tensor) -> Tensor:
    """The weights of the tokens that a token reads."""
    return weights.tril() if mixer.placement.causal else weights


def featured(mixer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """φ(q), φ(k) [B, H, T, F]."""
    pairs = ((mixer.query_feature, mixer.query), (mixer.key_feature, mixer.key))
    q, k = (feature(heads(project(x)).transpose(1, 2)).transpose(1, 2) for feature, project in pairs)
    return q, k


def mean(mixer: Any, weights: Tensor, x: Tensor) -> Tensor:
    """The weighted mean of the values, [B, T, D], and the output's map."""
    weights = seen(mixer, weights)
    o = weights @ heads(mixer.value(x)) / (weights.sum(-1, keepdim=True) + EPSILON)
    return mixer.output(joined(o))


def rms(x: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def agree(mixer: Any, formula: Formula, lengths: tuple[int, ...] = LENGTHS) -> None:
    for T in lengths:
        x = tokens(2, T, width=WIDTH, seed=T).requires_grad_()
        got, expected = mixer(x)[0], formula(mixer, x)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        weights = tokens(2, T, width=WIDTH, seed=T + 1)
        inputs = [x, *mixer.parameters()]
        gradients = (torch.autograd.grad((y * weights).sum(), inputs, allow_unused=T == 1) for y in (got, expected))
        for (name, _), *pair in zip([("x", x), *mixer.named_parameters()], *gradients, strict=True):
            assert (pair[0] is None) == (pair[1] is None), name
            if pair[0] is not None:
                torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")


def linear(mixer: Any, x: Tensor) -> Tensor:
    q, k = featured(mixer, x)
    if mixer.norm is None:
        return mean(mixer, q @ k.mT, x)
    weights = q @ k.mT if mixer.position is None else lrpe_weights(mixer.position, q, k)
    num_features = q.shape[-1] * (2 if mixer.config.position == "cosine" else 1)
    o = seen(mixer, weights) @ heads(mixer.value(x)) / math.sqrt(num_features)
    return mixer.output(joined(rms(o, mixer.norm.weight)))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("feature", [name for name, kind in FEATURES.items() if kind.nonnegative])
def test_linear_attention_with_a_denominator(feature: str, causal: bool) -> None:
    agree(mixer_of("linear", causal, feature=feature), linear, (1, 7))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("feature", ["identity", "elu", "silu", "hadamard", "dpfp"])
def test_linear_attention_with_a_norm(feature: str, causal: bool) -> None:
    agree(mixer_of("linear", causal, feature=feature, normaliser="rms_norm", key_width=3), linear, (1, 7))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("position", ["rotation", "cosine"])
def test_linear_attention_with_positions(position: str, causal: bool) -> None:
    agree(mixer_of("linear", causal, feature="silu", normaliser="rms_norm", position=position), linear)


def test_a_sum_that_may_vanish_is_no_denominator() -> None:
    with pytest.raises(ValueError, match="products turned by position 'cosine' may be negative"):
        mixer_of("linear", position="cosine")
    for name in ("linear", "cosformer"):
        with pytest.raises(ValueError, match="products of feature 'silu' may be negative"):
            mixer_of(name, feature="silu")


def cosformer(mixer: Any, x: Tensor) -> Tensor:
    q, k = featured(mixer, x)
    return mean(mixer, (q @ k.mT) * (math.pi / 2 * distances(x.shape[1]) / LONGEST).cos(), x)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("feature", ["relu", "elu_one"])
def test_cosformer(feature: str, causal: bool) -> None:
    agree(mixer_of("cosformer", causal, feature=feature), cosformer, (*LENGTHS, LONGEST))


@pytest.mark.parametrize("causal", [True, False])
def test_cosformers_weights_fall_off_and_stay_positive_up_to_the_bound(causal: bool) -> None:
    mixer, x = mixer_of("cosformer", causal, loud=False), tokens(1, LONGEST, width=WIDTH)
    weights = (math.pi / 2 * distances(LONGEST) / LONGEST).cos()
    assert (weights > 0).all() and weights[-1, 0] < 0.02
    mixer(x)
    segments = torch.tensor([[0, 0, 0] + [1] * LONGEST + [0]])
    padded = torch.cat([x[:, :3], x, x[:, :1]], 1)
    torch.testing.assert_close(mixer(padded, segments=segments)[0][:, 3:-1], mixer(x)[0])
    twice = mixer(torch.cat([x, x], 1), segments=torch.tensor([[1] * LONGEST + [2] * LONGEST]))[0]
    torch.testing.assert_close(twice, torch.cat([mixer(x)[0]] * 2, 1))
    longer = torch.cat([x, x[:, :1]], 1)
    for refused in (None, torch.ones(1, LONGEST + 1)):
        with pytest.raises(ValueError, match="cosformer: a sequence of 129 tokens is longer than max_length 128"):
            mixer(longer, segments=refused)


def lrpe_weights(position: RelativePositions, q: Tensor, k: Tensor) -> Tensor:
    """The sums over channels of relative_positions.py's docstring, [B, H, T, T]."""
    H, n = position.shape
    if position.kind == "cosine":
        angles = 10_000.0 ** (-2 * torch.arange(H * n, dtype=torch.float64).view(H, n) / (H * n))
    else:
        angles = (10_000.0 ** (-2 * torch.arange(n, dtype=torch.float64) / (2 * n))).expand(H, n)
    angles = angles if position.shift is None else angles + position.shift
    phases = distances(q.shape[2])[..., None] * angles[:, None, None]  # H T T n
    if position.kind == "cosine":
        return (q[..., :, None, :] * k[..., None, :, :] * phases.cos()).sum(-1)
    q, k = (torch.complex(*x.chunk(2, -1)) for x in (q, k))
    return (q[..., :, None, :] * k[..., None, :, :].conj() * torch.exp(1j * phases)).sum(-1).real


def transnormer(mixer: Any, x: Tensor) -> Tensor:
    q, k = featured(mixer, x)
    weights = q @ k.mT if mixer.position is None else lrpe_weights(mixer.position, q, k)
    num_features = q.shape[-1] * (2 if mixer.config.position == "cosine" else 1)
    o = joined(seen(mixer, weights) @ heads(mixer.value(x))) / math.sqrt(num_features)
    y = rms(o, getattr(mixer.norm, "weight", 1.0))
    return mixer.output(y if mixer.gate is None else nn.functional.silu(mixer.gate(x)) * y)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"position": "rotation"},
        {"position": "cosine"},
        {"position": "none", "feature": "elu_one"},
        {"position": "cosine", "learned_angles": False, "gate": True, "norm": "simple_rms_norm"},
    ],
    ids=str,
)
def test_transnormer(settings: dict[str, Any], causal: bool) -> None:
    agree(mixer_of("transnormer", causal, **settings), transnormer)


def tnl(mixer: Any, x: Tensor) -> Tensor:
    q, k = featured(mixer, x)
    weights = q @ k.mT if mixer.position is None else lrpe_weights(mixer.position, q, k)
    h, layer = torch.arange(1, HEADS + 1, dtype=torch.float64), mixer.placement.layer
    minimax = mixer.config.activate_values
    slopes = 2 ** (-8 * h / HEADS) if minimax else 8 * h / HEADS * (1 - layer / 4)
    weights = weights * (-slopes[:, None, None] * distances(x.shape[1]).abs()).exp()
    v, gate = mixer.value(x), mixer.gate(x)
    v = nn.functional.silu(v) if mixer.config.activate_values else v
    gate = gate.sigmoid() if mixer.config.gate == "sigmoid" else gate
    o = joined(seen(mixer, weights) @ heads(v)) / math.sqrt(q.shape[-1] * (1 if mixer.position is None else 2))
    return mixer.output(gate * rms(o, getattr(mixer.norm, "weight", 1.0)))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("settings", [{}, {"preset": "minimax"}, {"position": "every_layer"}], ids=str)
def test_tnl(settings: dict[str, Any], layer: int, causal: bool) -> None:
    mixer = mixer_of("tnl", causal, layer, **settings)
    placed = {"first_layer": layer == 0, "every_layer": True, "none": False}
    assert (mixer.position is not None) == placed[mixer.config.position]
    agree(mixer, tnl)


def retnet(mixer: Any, x: Tensor) -> Tensor:
    q, k, v = (heads(project(x)) for project in (mixer.query, mixer.key, mixer.value))
    if mixer.config.position == "rotary":  # the tables of attention, which transformers' Llama confirms
        tables = rotary_tables(resolve(x, None, None).positions, q.shape[-1], 10_000.0, x.dtype, None)
        q, k = (rotate(part.transpose(1, 2), *tables).transpose(1, 2) for part in (q, k))
    weights = q @ k.mT
    decays = 1 - 2 ** (-5 - torch.arange(HEADS, dtype=torch.float64))[:, None, None]
    o = seen(mixer, weights * decays ** distances(x.shape[1]).abs()) @ v / math.sqrt(q.shape[-1])
    if mixer.config.norm == "layer_norm":
        o = o - o.mean(-1, keepdim=True)
    y = joined(rms(o, getattr(mixer.norm, "weight", 1.0)))
    return mixer.output(nn.functional.silu(mixer.gate(x)) * y)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("settings", [{}, {"preset": "torchscale"}, {"preset": "no_position"}], ids=str)
def test_retnet(settings: dict[str, Any], causal: bool) -> None:
    mixer = mixer_of("retnet", causal, **settings)
    assert mixer.value.weight.shape == (2 * WIDTH, WIDTH)
    agree(mixer, retnet)


def based(mixer: Any, x: Tensor) -> Tensor:
    q, k = (heads(project(x)) for project in (mixer.query, mixer.key))
    z = q @ k.mT / math.sqrt(q.shape[-1])
    return mean(mixer, 1 + z + z**2 / 2, x)


def rebased(mixer: Any, x: Tensor) -> Tensor:
    def normalised(feature: Any, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * feature.scale[:, None] + feature.shift[:, None]

    q = normalised(mixer.query_feature, heads(mixer.query(x)))
    k = normalised(mixer.key_feature, heads(mixer.key(x)))
    return mean(mixer, (q @ k.mT) ** 2 / q.shape[-1], x)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("name", "formula"), [("based", based), ("rebased", rebased)])
def test_quadratic_features(name: str, formula: Formula, causal: bool) -> None:
    agree(mixer_of(name, causal, key_width=5), formula)


def test_a_denominator_is_one_more_column_of_ones() -> None:
    q, k, v = torch.rand(3, 2, 40, HEADS, 5, dtype=torch.float64)
    rows = resolve(q, None, None)

    def read(v: Tensor) -> Tensor:
        return recurrence(q, k, v, None, rows=rows, state=None, causal=True)[0]

    expected = read(v) / (read(torch.ones_like(v[..., :1])) + EPSILON)
    torch.testing.assert_close(weighted_mean(q, k, v, rows=rows, state=None, causal=True)[0], expected)


def test_linear_attention_in_two_directions_is_one_sum() -> None:
    mixer, x = mixer_of("linear", causal=False, normaliser="rms_norm"), tokens(2, 70, width=WIDTH)
    q, k = featured(mixer, x)
    memory = k.mT @ heads(mixer.value(x))  # B H K V, of all tokens
    o = q @ memory / math.sqrt(q.shape[-1])
    torch.testing.assert_close(mixer(x)[0], mixer.output(joined(rms(o, mixer.norm.weight))))


def test_a_cosine_doubles_the_keys_of_a_plain_recurrence() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 40, HEADS, 6, generator=generator, dtype=torch.float64)
    rows, position = resolve(q, None, None), RelativePositions("cosine", HEADS, 6, True)
    initialize(position, seed=0)
    shake(position)
    turned = position.double()(q, k, rows=rows)
    assert all(x.shape[-1] == 12 for x in turned)
    o, state = recurrence(*turned, v, None, rows=rows, state=None, causal=True)
    assert state is not None and state.shape == (2, HEADS, 12, 6)
    weights = lrpe_weights(position, q.transpose(1, 2), k.transpose(1, 2)).tril()
    torch.testing.assert_close(o, (weights @ v.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("causal", [True, False])
def test_gated_linear_attention_without_decay_is_linear_attention_with_a_norm_and_a_gate(causal: bool) -> None:
    gla = mixer_of("gla", causal, decay="none", key_expansion=1.0)
    plain = mixer_of("linear", causal, feature="identity", normaliser="rms_norm")
    for part in ("query", "key", "value", "norm"):
        getattr(plain, part).load_state_dict(getattr(gla, part).state_dict())
    nn.init.eye_(plain.output.weight)
    x = tokens(2, 70, width=WIDTH)
    torch.testing.assert_close(gla(x)[0], gla.output(nn.functional.silu(gla.gate(x)) * plain(x)[0]))


@pytest.mark.parametrize("causal", [True, False])
def test_retention_without_positions_is_gated_linear_attention_with_its_slopes(causal: bool) -> None:
    retention = mixer_of("retnet", causal, value_expansion=1.0, position="none", norm="rms_norm")
    settings = {"decay": "constant_retnet", "granularity": "scalar", "key_expansion": 1.0}
    gla = mixer_of("gla", causal, **settings)
    gla.load_state_dict(retention.state_dict())
    x = tokens(2, 70, width=WIDTH)
    torch.testing.assert_close(gla(x)[0], retention(x)[0])


def test_retention_is_tnl_with_the_same_slopes() -> None:
    x = tokens(2, 70, width=WIDTH)
    retention = mixer_of("retnet", value_expansion=1.0, position="none", norm="simple_rms_norm")
    lightning = mixer_of("tnl", decay="constant_retnet", feature="identity", position="none")
    for part in ("query", "key", "value"):
        getattr(lightning, part).load_state_dict(getattr(retention, part).state_dict())
    read = []
    for mixer in (retention, lightning):
        mixer.norm.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        mixer(x)
    torch.testing.assert_close(read[0].flatten(2), read[1])


def test_the_papers_initial_values() -> None:
    def spread(weight: Tensor) -> float:
        return float(weight.detach().abs().max())

    linear_like = [mixer_of(name, loud=False, initialization="paper") for name in ("linear", "cosformer")]
    for mixer in linear_like:
        for layer in (mixer.query, mixer.key, mixer.value, mixer.output):
            assert 0.2 < spread(layer.weight) <= WIDTH**-0.5
    bound = math.sqrt(6 / (2 * WIDTH))  # of Xavier's uniform
    mixer = mixer_of("transnormer", loud=False, initialization="paper")
    for layer, gain in ((mixer.query, 0.5**0.5), (mixer.value, 0.5**0.5), (mixer.output, 1)):
        assert 0.9 * gain * bound < spread(layer.weight) <= gain * bound
    mixer = mixer_of("retnet", loud=False, initialization="paper", value_expansion=1.0)
    for layer, gain in ((mixer.query, 2**-2.5), (mixer.value, 2**-2.5), (mixer.gate, 2**-2.5), (mixer.output, 1)):
        assert 0.9 * gain * bound < spread(layer.weight) <= gain * bound
    mixer = mixer_of("gla", loud=False, initialization="paper", key_expansion=1.0)
    for layer in (mixer.query, mixer.gate, mixer.output):
        assert 0.9 * bound < spread(layer.weight) * 2**2.5 <= bound
    assert mixer.decay.down.weight.detach().abs().max() * 2**2.5 <= bound
    mixer = mixer_of("tnl", loud=False, initialization="paper")
    for layer in (mixer.query, mixer.gate, mixer.output):
        assert abs(float(layer.weight.detach().std()) - 0.02) < 0.004
