"""Mamba-2: its formula token by token, its initial values, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from paribus.nn.component import make_mixer
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Placement
from tests.unit.nn.formula_cases import LENGTHS, check_formula, convolve, heads_of, mixer_of, recur, rms, tokens_of

H, N, E = 6, 5, 24


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_its_formula(length: int, groups: int, causal: bool) -> None:
    mixer = mixer_of("mamba2", causal, num_heads=H, num_groups=groups, state_width=N, taps=3)

    def formula(x: Tensor) -> Tensor:
        z, v, k, q, dt = mixer.input(x).split([E, E, groups * N, groups * N, H], -1)
        vkq = silu(convolve(torch.cat([v, k, q], -1), mixer.convolution, causal) + mixer.convolution_bias)
        v, k, q = vkq.split([E, groups * N, groups * N], -1)
        v, k, q = heads_of(v, H), heads_of(k, groups), heads_of(q, groups)
        k, q = (part.repeat_interleave(H // groups, 2) for part in (k, q))
        delta = softplus(dt + mixer.step_bias)[..., None]
        o = recur(q, delta * k, v, -mixer.log_rate.exp()[:, None] * delta, causal) + mixer.skip * v
        gated = heads_of(o.flatten(2) * silu(z), groups)
        return mixer.output(rms(gated, torch.stack([norm.weight for norm in mixer.norms]), 1e-5).flatten(2))

    check_formula(mixer, formula, length)


def initial(choice: str) -> Any:
    mixer = make_mixer({"name": "mamba2", "num_heads": 512, "expansion": 8.0, "initialization": choice}, Placement(64))
    initialize(mixer, seed=0)
    return mixer


@pytest.mark.parametrize("choice", ["house", "paper"])
def test_initial_values(choice: str) -> None:
    mixer = initial(choice)
    steps, rates = softplus(mixer.step_bias), mixer.log_rate.exp()
    assert 0.001 <= steps.min() < 0.0012 and 0.08 < steps.max() <= 0.1001
    assert abs(steps.median() - 0.01) < 0.002, "log-uniform"
    assert 1 <= rates.min() < 1.5 and 14 < rates.max() <= 16.001
    middle = 8.5 if choice == "paper" else 4.0
    assert abs(rates.median() - middle) < 0.15 * middle
    assert (mixer.skip == 1).all() and mixer.convolution_bias.any() == (choice == "paper")
    bounds = {"input.weight": 1 / 8, "output.weight": 512**-0.5, "convolution": 0.5, "convolution_bias": 0.5}
    for name, parameter in mixer.named_parameters():
        if choice == "paper" and name in bounds:
            assert 0.95 * bounds[name] < parameter.abs().max() <= bounds[name], name


def test_tokens_before_and_inside_padding_do_not_leak_through_the_bias() -> None:
    """The bias behind the convolution makes padding non-zero again; it must neither be written nor decay anything."""
    mixer, x = mixer_of("mamba2", num_heads=H), tokens_of(12)
    with torch.no_grad():
        mixer.convolution_bias.add_(5)
        mixer.step_bias.add_(5)
    segments = torch.tensor([[0] * 4 + [1] * 8, [1] * 3 + [0] * 5 + [1] * 4])
    y, _ = mixer(x, segments=segments)
    for row, ids in enumerate(segments):
        alone, _ = mixer(x[row : row + 1, ids != 0])
        torch.testing.assert_close(y[row, ids != 0], alone[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "mamba2: expansion: width 32 is not divisible by num_heads 3"),
        ({"num_groups": 3}, "mamba2: num_heads 4 is not divisible by num_groups 3"),
        ({"expansion": 0.0}, r"mamba2: expansion 0\.0 leaves no channel"),
        *(
            ({name: 0}, f"mamba2: {name} is 0; at least 1")
            for name in ("num_heads", "num_groups", "taps", "state_width")
        ),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mixer({"name": "mamba2", **settings}, Placement(16))


def test_the_paper_preset_is_of_its_size() -> None:
    mixer = make_mixer({"name": "mamba2", "preset": "paper"}, Placement(256))
    count = sum(parameter.numel() for parameter in mixer.parameters())
    assert count == 256 * (2 * 512 + 2 * 128 + 8) + 5 * (512 + 256) + 3 * 8 + 512 + 512 * 256
    assert math.isclose(512 / mixer.config.num_heads, 64)
