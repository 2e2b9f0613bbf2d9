"""Mixers of convolutions against their papers' formulas, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paribus.evaluation.contract.subjects import MIXER, agree, build, in_pieces, tokens
from paribus.nn.state import state_tensors

LENGTH, WIDTH = 21, 8
DIRECTIONS = pytest.mark.parametrize("causal", [True, False])


def made(name: str, causal: bool, **settings: Any) -> Any:
    """A small mixer in float64, its parameters far from their initial values."""
    return build(MIXER, name, width=WIDTH, longest=LENGTH + 3, causal=causal, loud=True, settings=settings)


def convolved(x: Tensor, causal: bool, weight: Callable[[int], Tensor]) -> Tensor:
    """Σ_s weight(t − s) ⊙ x[s], for x [T, E]."""
    steps = range(len(x))
    return torch.stack([sum(weight(t - s) * x[s] for s in (range(t + 1) if causal else steps)) for t in steps])


def few(x: Tensor, causal: bool, tap: Callable[[int, Tensor], Tensor], taps: int) -> Tensor:
    """Σ_j tap(j, x[t + j − before]); tap j multiplies what it is given."""
    before = taps - 1 if causal else taps // 2
    outputs = []
    for t in range(len(x)):
        places = {j: t + j - before for j in range(taps)}
        outputs.append(sum(tap(j, x[s]) for j, s in places.items() if 0 <= s < len(x)))
    return torch.stack(outputs)


@DIRECTIONS
@pytest.mark.parametrize("settings", [{}, {"preset": "paper", "layers": 2, "position_width": 5}])
def test_tnn(settings: dict[str, Any], causal: bool) -> None:
    mixer, x = made("tnn", causal, decay=0.9, **settings), tokens(1, LENGTH, width=WIDTH)[0]
    hidden = [mixer.lag_input, *mixer.lag_hidden, mixer.lag_output]

    def weight(lag: int) -> Tensor:
        if settings:
            h = hidden[0](torch.tensor([float(lag)], dtype=torch.float64))
            for layer in hidden[1:]:
                h = layer(F.relu(h / (h.square().mean() + torch.finfo(h.dtype).eps).sqrt()))
        else:
            angles = lag * 10_000.0 ** -torch.arange(0, 1, 2 / 32, dtype=torch.float64)
            h = hidden[0](torch.cat([angles.sin(), angles.cos()]))
            for layer in hidden[1:]:
                h = layer(F.silu(h))
        return 0.9 ** abs(lag) * h

    mixed = convolved(F.silu(x @ mixer.value.weight.T), causal, weight)
    if not settings:
        mixed = mixed / (mixed.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mixer.norm.weight
    expected = (F.silu(x @ mixer.gate.weight.T) * mixed) @ mixer.output.weight.T
    agree("tnn", mixer(x[None])[0][0], expected, 1e-12)


def hyena_filter(mixer: Any, number: int, lag: int) -> Tensor:
    """[D], by the formula."""
    config, longest = mixer.config, LENGTH + 3
    bands = (config.position_features - 1) // 2
    frequencies = [1e-4 + (bands - 1 - 1e-4) * k / max(1, bands - 1) for k in range(bands)]
    angles = [2 * math.pi * lag * frequency / longest for frequency in frequencies]
    z = [lag / (longest - 1), *(math.cos(angle) for angle in angles), *(-math.sin(angle) for angle in angles)]
    hidden = torch.tensor(z, dtype=torch.float64)
    for layer in (mixer.lag_input, *mixer.lag_hidden):
        hidden = torch.sin(mixer.frequency * (layer.weight @ hidden + layer.bias))
    count = mixer.num_filters * WIDTH
    rates = [-math.log(0.01) / config.slow_decay, -math.log(0.01) / config.fast_decay]
    rate = torch.tensor([rates[0] + (rates[1] - rates[0]) * c / (count - 1) for c in range(count)], dtype=torch.float64)
    window = torch.exp(-rate * abs(lag) / longest) + config.window_floor
    return (window * (mixer.lag_output.weight @ hidden))[number * WIDTH : (number + 1) * WIDTH]


@DIRECTIONS
@pytest.mark.parametrize(
    "settings", [{}, {"order": 3, "window_floor": 0.2}, {"preset": "recurrence", "taps": 4, "position_features": 5}]
)
def test_hyena(settings: dict[str, Any], causal: bool) -> None:
    mixer, x = made("hyena", causal, **settings), tokens(1, LENGTH, width=WIDTH)[0]
    config = mixer.config
    u = few(x @ mixer.input.weight.T, causal, lambda j, seen: mixer.convolution[:, j] * seen, config.taps)
    v, *gates = u.split(WIDTH, -1)
    filters = list(range(mixer.num_filters))
    for n, gate in enumerate(gates):
        if n or config.first_convolution:
            number = filters.pop(0)
            lags: dict[int, Tensor] = {lag: hyena_filter(mixer, number, lag) for lag in range(1 - LENGTH, LENGTH)}
            v = convolved(v, causal, lags.__getitem__) + mixer.skip[number] * v
        v = gate * v
    assert not filters
    agree("hyena", mixer(x[None])[0][0], v @ mixer.output.weight.T, 1e-12)


@pytest.mark.parametrize("preset", ["paper", "recurrence"])
def test_hyena_begins_as_told(preset: str) -> None:
    mixer = build(MIXER, "hyena", width=64, longest=256, settings={"preset": preset})
    assert (mixer.frequency == (14 if preset == "paper" else 1)).all()
    bound = 64**-0.5
    largest = float(mixer.lag_hidden[0].weight.detach().abs().max())
    assert (0.95 * bound < largest <= bound) is (preset == "paper")
    if preset == "recurrence":
        energies = [float(mixer.taps(n, 256).detach().square().sum(0).mean()) for n in range(2)]
        assert all(0.2 < energy < 2 for energy in energies)


@DIRECTIONS
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"preset": "base_conv"},
        {"preset": "lfm2"},
        {"preset": "depthwise"},
        {"taps": 2, "input_gate": "sigmoid", "output_gate": "silu", "activation": "silu"},
    ],
)
def test_short_convolution(settings: dict[str, Any], causal: bool) -> None:
    mixer, x = made("short_convolution", causal, **settings), tokens(1, LENGTH, width=WIDTH)[0]
    config = mixer.config

    def gate(kind: str, layer: Any) -> Tensor:
        if kind == "none":
            assert layer is None
            return torch.ones_like(x)
        z = x @ layer.weight.T
        return {"linear": z, "silu": z * z.sigmoid(), "sigmoid": z.sigmoid()}[kind]

    u = (x @ mixer.value.weight.T if config.projections else x) * gate(config.input_gate, mixer.input_gate)
    z = few(u, causal, lambda j, seen: mixer.convolution[:, j] * seen, config.taps)
    z = F.silu(z) if config.activation == "silu" else z
    z = z * gate(config.output_gate, mixer.output_gate)
    expected = z @ mixer.output.weight.T if config.projections else z
    agree("short_convolution", mixer(x[None])[0][0], expected, 1e-12)


@DIRECTIONS
@pytest.mark.parametrize(
    "settings", [{}, {"preset": "rms_norm", "taps": 2}, {"preset": "bottleneck", "taps": 4, "middle_taps": 7}]
)
def test_olmax_convolution(settings: dict[str, Any], causal: bool) -> None:
    mixer, x = made("olmax_convolution", causal, **settings), tokens(1, LENGTH, width=WIDTH)[0]
    h, counts = x, [part.weight.shape[1] for part in mixer.convolutions]
    assert counts == ([4, 7, 4] if "middle_taps" in settings else [mixer.config.taps] * 2)
    for number, taps in enumerate(counts):
        if number:
            length = h.norm(dim=-1, keepdim=True)
            if mixer.config.norm == "rms_norm":
                length = (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            h = mixer.norms[number - 1].weight * h / length
            h = torch.where(h < 0, 0.01 * h, h)
        weight = mixer.convolutions[number].weight
        h = few(h, causal, lambda j, seen, weight=weight: weight[:, j] @ seen, taps)
    agree("olmax_convolution", mixer(x[None])[0][0], h, 1e-12)


@pytest.mark.parametrize("name", ["short_convolution", "olmax_convolution"])
def test_short_states_do_not_grow(name: str) -> None:
    mixer, x = made(name, True), tokens(2, 40, width=WIDTH)
    sizes = []
    for length in (1, 7, 40):
        _, state = mixer(x[:, :length], keep_state=True)
        sizes.append([tensor.shape for tensor in state_tensors(state)])
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.parametrize("name", ["tnn", "hyena"])
def test_taps_do_not_depend_on_the_length(name: str) -> None:
    """What is read before max_length is read alike beyond it, whole or in pieces."""
    mixer, x = made(name, True), tokens(1, 3 * LENGTH, width=WIDTH)
    whole, _ = mixer(x)
    agree(f"{name}: a part", mixer(x[:, :LENGTH])[0], whole[:, :LENGTH], 1e-11)
    agree(f"{name}: in pieces", in_pieces(mixer, x, None, (20, 21, 50)), whole, 1e-11)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tnn", {"layers": 0}, "layers is 0"),
        ("tnn", {"position_width": 3}, "position_width is 3; an even number"),
        ("hyena", {"order": 1}, "order is 1"),
        ("hyena", {"position_features": 4}, "position_features is 4; an odd number"),
        ("hyena", {"fast_decay": 0.0}, "fast_decay is 0.0"),
        ("short_convolution", {"taps": 0}, "taps is 0"),
        ("olmax_convolution", {"middle_taps": -1}, "middle_taps is -1"),
        ("olmax_convolution", {"expansion": 0.0}, "expansion is 0.0"),
    ],
)
def test_refusals(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, True, **settings)
