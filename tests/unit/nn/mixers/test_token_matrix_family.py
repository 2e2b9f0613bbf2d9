"""Mixers with an explicit matrix over tokens, against their papers' formulas, position by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paribus.evaluation.contract.subjects import MIXER, agree, build, tokens
from paribus.nn.mixer import Context

LENGTH, WIDTH = 21, 8


def made(name: str, causal: bool, *, longest: int = LENGTH + 3, **settings: Any) -> Any:
    """A small mixer in float64, its parameters far from their initial values."""
    return build(MIXER, name, width=WIDTH, longest=longest, causal=causal, loud=True, settings=settings)


def reads(i: int, causal: bool) -> range:
    """The positions that position i reads."""
    return range(i + 1 if causal else LENGTH)


def equal(mixer: Any, x: Tensor, expected: list[Tensor]) -> None:
    """One answer for each position."""
    agree(type(mixer).__name__, mixer(x[None])[0][0], torch.stack(expected), 1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("preset", ["paper", "thread"])
def test_mlp_mixer(preset: str, causal: bool) -> None:
    mixer = made("mlp_mixer", causal, preset=preset, num_heads=2)
    units, V, x = mixer.config.token_expansion, WIDTH // 2, tokens(1, LENGTH, width=WIDTH)[0]
    hidden: dict[tuple[int, int, int], Tensor] = {}
    outputs = []
    for i in range(LENGTH):
        parts = []
        for h in range(2):
            for u in range(units):
                row = h * units + u
                z = sum(mixer.first[row, i, j] * x[j, h * V : (h + 1) * V] for j in reads(i, causal))
                if preset == "paper":
                    hidden[i, h, u] = F.gelu(z + mixer.first_bias[row, i])
                else:
                    hidden[i, h, u] = F.relu(F.layer_norm(z, (V,), mixer.norm.weight, None, 1e-6))
        outputs.append(parts)
    for i in range(LENGTH):
        for h in range(2):
            y = torch.zeros(V, dtype=torch.float64)
            for j in reads(i, causal):
                for u in range(units):
                    y = y + mixer.second[h * units + u, i, j] * hidden[j, h, u]
            outputs[i].append(y + mixer.second_bias[h, i] if preset == "paper" else y)
    equal(mixer, x, [torch.cat(parts) for parts in outputs])


def test_mlp_mixer_scales_rows_alike() -> None:
    plain, scaled = made("mlp_mixer", True, row_scale=False), made("mlp_mixer", True)
    x = tokens(1, 1, width=WIDTH)
    M = LENGTH + 3
    first = plain.first[0, 0, 0] * x * M**0.5
    agree("first token", scaled(x)[0], plain.second[0, 0, 0] * F.gelu(first) * M**0.5, 1e-12)


def gmlp_answers(mixer: Any, x: Tensor, causal: bool) -> list[Tensor]:
    """The paper's equations; with tiny attention if the mixer has it."""
    heads, E = mixer.config.num_heads, mixer.output.in_features
    z1, z2 = F.gelu(x @ mixer.value.weight.T), F.gelu(x @ mixer.gate.weight.T)
    normed = F.layer_norm(z2, (E,), mixer.norm.weight, None, 1e-6)
    outputs = []
    for i in range(LENGTH):
        gate = torch.zeros(heads, E // heads, dtype=torch.float64)
        for j in reads(i, causal):
            gate = gate + mixer.spatial[:, i, j, None] * normed[j].view(heads, -1)
        if mixer.spatial_bias is not None:
            gate = gate + mixer.spatial_bias[:, i, None]
        gate = gate.flatten()
        if mixer.config.attention_width:
            q, k, v = (x @ mixer.attention.weight.T).chunk(3, -1)
            scores = torch.stack([q[i] @ k[j] for j in reads(i, causal)]) / q.shape[1] ** 0.5
            mixed = sum(weight * v[j] for weight, j in zip(scores.softmax(0), reads(i, causal), strict=True))
            gate = gate + mixer.attention_output.weight @ mixed
        bound = {"none": lambda g: g, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[mixer.config.gate_activation]
        outputs.append(mixer.output.weight @ (z1[i] * bound(gate)))
    return outputs


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "settings",
    [{}, {"preset": "paper_attention"}, {"preset": "thread"}, {"preset": "tanh"}, {"gate_activation": "sigmoid"}],
    ids=str,
)
def test_gmlp(settings: dict[str, Any], causal: bool) -> None:
    mixer, x = made("gmlp", causal, **settings), tokens(1, LENGTH, width=WIDTH)[0]
    equal(mixer, x, gmlp_answers(mixer, x, causal))


def test_gmlp_begins_as_a_plain_mlp() -> None:
    mixer, x = build(MIXER, "gmlp", width=WIDTH), tokens(1, 100, width=WIDTH)
    agree("gmlp", mixer(x)[0], mixer.output(F.gelu(mixer.value(x))), 0.1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("settings", [{}, {"preset": "fixed"}], ids=str)
def test_container(settings: dict[str, Any], causal: bool) -> None:
    mixer, x = made("container", causal, num_heads=2, **settings), tokens(1, LENGTH, width=WIDTH)[0]
    q, k, v = ((x @ part.weight.T).view(LENGTH, 2, 4) for part in (mixer.query, mixer.key, mixer.value))
    outputs = []
    for i in range(LENGTH):
        heads = []
        for h in range(2):
            scores = torch.stack([q[i, h] @ k[j, h] / 2 for j in reads(i, causal)]).softmax(0)
            dynamic = sum(score * v[j, h] for score, j in zip(scores, reads(i, causal), strict=True))
            static = sum(mixer.static[h, i, j] * v[j, h] for j in reads(i, causal))
            learned = not settings
            a, b = (mixer.dynamic_weight[h], mixer.static_weight[h]) if learned else (1, 1)
            heads.append(a * dynamic + b * static)
        outputs.append(mixer.output.weight @ torch.cat(heads))
    equal(mixer, x, outputs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("position", ["rotary", "none"])
def test_container_without_its_matrix_is_attention(position: str, causal: bool) -> None:
    container = made("container", causal, num_heads=2, position=position, coefficients="fixed")
    attention = made("attention", causal, num_heads=2, position=position)
    x = tokens(2, LENGTH, width=WIDTH)
    with torch.no_grad():
        container.static.zero_()
        attention.load_state_dict({k: v for k, v in container.state_dict().items() if k != "static"})
    agree("container", container(x)[0], attention(x)[0], 1e-12)


def synthetic_score(mixer: Any, h: int, i: int, j: int, hidden: Tensor) -> Tensor:
    """The score of position j for position i in head h; hidden [V] of position i."""
    kind = mixer.config.scores
    if kind == "random":
        return mixer.random[h, i, j]
    if kind == "factorized_random":
        return mixer.random_rows[h, i] @ mixer.random_columns[h, j]
    if kind == "factorized_dense":
        fine = mixer.dense_fine.shape[2]
        return (hidden @ mixer.dense_coarse[h, :, j // fine]) * (hidden @ mixer.dense_fine[h, :, j % fine])
    dense = hidden @ mixer.dense[h, :, j]
    if kind == "dense":
        return dense
    share = mixer.mixture.softmax(0)
    return share[0] * mixer.random[h, i, j] + share[1] * dense


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scores", ["random", "factorized_random", "dense", "factorized_dense", "mixture"])
def test_synthesizer(scores: str, causal: bool) -> None:
    mixer = made("synthesizer", causal, num_heads=2, scores=scores, rank=3)
    x = tokens(1, LENGTH, width=WIDTH)[0]
    v = (x @ mixer.value.weight.T).view(LENGTH, 2, 4)
    hidden = v if mixer.hidden is None else F.relu(x @ mixer.hidden.weight.T).view(LENGTH, 2, 4)
    outputs = []
    for i in range(LENGTH):
        heads = []
        for h in range(2):
            row = torch.stack([synthetic_score(mixer, h, i, j, hidden[i, h]) for j in reads(i, causal)]).softmax(0)
            heads.append(sum(weight * v[j, h] for weight, j in zip(row, reads(i, causal), strict=True)))
        outputs.append(mixer.output.weight @ torch.cat(heads))
    equal(mixer, x, outputs)


@pytest.mark.parametrize("scores", ["factorized_random", "dense", "factorized_dense", "mixture"])
def test_synthesizers_are_bound_to_their_length(scores: str) -> None:
    mixer, x = made("synthesizer", True, scores=scores, longest=8), tokens(1, 9, width=WIDTH)
    _, state = mixer(x[:, :8], keep_state=True)
    for piece, past in ((x, None), (x[:, 8:], state)):
        with pytest.raises(ValueError, match="9 tokens is longer than the 8"):
            mixer(piece, state=past)


@pytest.mark.parametrize("width", [1, 2, 7, 8])
@pytest.mark.parametrize("length", [1, 2, 7, 20])
def test_fnet_is_torchs_transform(length: int, width: int) -> None:
    mixer, x = build(MIXER, "fnet", width=width, causal=False), tokens(2, length, width=width)
    agree("fnet", mixer(x)[0], torch.fft.fft2(x, norm="ortho").real, 1e-12)


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_masked_fnet(width: int) -> None:
    longest, length = 19, 17
    mixer, x = build(MIXER, "fnet", width=width, longest=longest), tokens(1, length, width=width)
    spectrum, outputs = torch.fft.fft(x[0]), []
    for i in range(length):
        waves = torch.exp(-2j * torch.pi * i * torch.arange(i + 1, dtype=torch.float64) / longest)
        outputs.append((waves @ spectrum[: i + 1]).real / ((i + 1) * width) ** 0.5)
    equal(mixer, x[0], outputs)


def test_fnet_shares_its_waves_between_layers() -> None:
    mixer, x, context = build(MIXER, "fnet"), tokens(2, 9), Context(tables={})
    alone, _ = mixer(x)
    for length in (9, 9, 5):
        agree("fnet", mixer(x[:, :length], context=context)[0], alone[:, :length], 1e-12)
    assert len(context.tables) == 2


def aft_bias(mixer: Any, t: int, s: int, causal: bool) -> Tensor | float:
    """w[t, s]."""
    config = mixer.config
    if config.table == "none":
        return 0.0
    if config.rank:
        return mixer.readers[t] @ mixer.read[s]
    if config.table == "full":
        return mixer.entries[t, s]
    lag = t - s
    return mixer.nearby[t, lag if causal else lag + config.window - 1] if abs(lag) < config.window else 0.0


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("settings", [{}, {"table": "none"}, {"table": "local", "window": 4}, {"rank": 3}], ids=str)
def test_aft(settings: dict[str, Any], causal: bool) -> None:
    mixer, x = made("aft", causal, **settings), tokens(1, LENGTH, width=WIDTH)[0]
    q, k, v = (x @ part.weight.T for part in (mixer.query, mixer.key, mixer.value))
    outputs = []
    for t in range(LENGTH):
        weights = [(k[s] + aft_bias(mixer, t, s, causal)).exp() for s in reads(t, causal)]
        average = sum(w * v[s] for w, s in zip(weights, reads(t, causal), strict=True)) / sum(weights)
        outputs.append(mixer.output.weight @ (q[t].sigmoid() * average))
    equal(mixer, x, outputs)


def test_aft_without_a_table_has_no_bound() -> None:
    mixer, x = made("aft", True, table="none", longest=8), tokens(1, 40, width=WIDTH)
    y, state = mixer(x, keep_state=True)
    assert y.shape == x.shape
    assert sum(t.numel() for t in state[1]) == 3 * WIDTH


@pytest.mark.parametrize("settings", [{}, {"table": "local"}, {"rank": 3}], ids=str)
def test_aft_with_a_table_is_bound(settings: dict[str, Any]) -> None:
    mixer, x = made("aft", True, longest=8, **settings), tokens(1, 9, width=WIDTH)
    _, state = mixer(x[:, :8], keep_state=True)
    for piece, past in ((x, None), (x[:, 8:], state)):
        with pytest.raises(ValueError, match="9 tokens is longer than the 8"):
            mixer(piece, state=past)
