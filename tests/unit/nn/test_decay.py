"""Decays: their ranges, shapes and closed forms, and the mixers that choose them by name."""

from __future__ import annotations

import math

import pytest
import torch

from paribus.nn.component import make_mixer
from paribus.nn.decay import DECAYS, Decay, complement, make_decay
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Placement

CHOICES = [(name, granularity) for name, decay in DECAYS.items() for granularity in decay.granularities]


def decay_of(name: str, granularity: str, placement: Placement | None = None) -> Decay:
    decay = make_decay(name, placement or Placement(16, layer=1, num_layers=2), 2, 4, granularity)  # type: ignore[arg-type]
    initialize(decay, seed=0)
    return decay


@pytest.mark.parametrize(("name", "granularity"), CHOICES)
def test_log_decays_have_their_shape_and_are_never_positive(name: str, granularity: str) -> None:
    log_decay = decay_of(name, granularity)(torch.randn(3, 5, 16))
    if name == "none":
        assert log_decay is None
        return
    shapes = {"scalar": (3, 5, 2), "channel": (3, 5, 2, 4)}
    assert log_decay.shape == ((2,) if name == "constant" else shapes[granularity])
    assert log_decay.dtype == torch.float32
    assert log_decay.isfinite().all() and (log_decay < 0).all()


@pytest.mark.parametrize(("name", "granularity"), CHOICES)
def test_every_parameter_gets_a_gradient(name: str, granularity: str) -> None:
    decay = decay_of(name, granularity)
    if not list(decay.parameters()):
        return
    decay(torch.randn(3, 5, 16)).sum().backward()
    for parameter in decay.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "granularity"), CHOICES)
def test_half_precision_and_autocast_give_float32(name: str, granularity: str) -> None:
    decay, x = decay_of(name, granularity), torch.randn(3, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = decay(x)
    half = decay.bfloat16()(x.bfloat16())
    for log_decay in (mixed, half):
        assert log_decay is None or log_decay.dtype == torch.float32


def test_constant_slopes_are_retnets() -> None:
    expected = torch.tensor([1 - 2.0**-5, 1 - 2.0**-6])
    torch.testing.assert_close(decay_of("constant", "scalar")(torch.randn(1, 1, 16)).exp(), expected)


def test_closed_forms() -> None:
    x = torch.randn(3, 5, 16)
    gla = decay_of("sigmoid_temperature", "channel")
    expected = (gla.up(gla.down(x)) + gla.bias).sigmoid() ** (1 / 16)
    torch.testing.assert_close(gla(x).exp().flatten(2), expected)
    bounded = decay_of("lower_bounded", "channel")
    torch.testing.assert_close(bounded(x).exp().flatten(2), 0.5 + 0.5 * bounded.project(x).sigmoid())
    sigmoid = decay_of("sigmoid", "scalar")
    torch.testing.assert_close(sigmoid(x).exp(), (sigmoid.project(x) + 4).sigmoid())
    mamba = decay_of("mamba", "scalar")
    step = torch.nn.functional.softplus(mamba.project(x) + mamba.bias)
    torch.testing.assert_close(mamba(x), -mamba.log_rate.exp() * step)


def test_the_lower_bound_rises_with_depth() -> None:
    x = torch.full((1, 1, 16), -1e4)
    for layer in range(3):
        decay = decay_of("lower_bounded", "scalar", Placement(16, layer=layer, num_layers=4))
        torch.nn.init.ones_(decay.project.weight)
        assert decay(x).exp().min().item() == pytest.approx(layer / 4, abs=1e-6)


def test_the_complement_is_exact_where_decay_is_weak() -> None:
    log_decay = torch.tensor([-1e-9, -1.0]).expand(2, 3, 2)
    expected = torch.tensor([1e-9, 1 - math.exp(-1)]).expand(2, 3, 2)[..., None]
    torch.testing.assert_close(complement(log_decay), expected)
    assert complement(torch.zeros(2, 3, 2, 4)).shape == (2, 3, 2, 4)
    assert complement(torch.zeros(2)).shape == (2, 1)


def test_bad_choices_are_one_clear_line() -> None:
    with pytest.raises(ValueError, match="unknown decay 'mambo'; did you mean 'mamba'"):
        make_decay("mambo", Placement(16), 2, 4)
    with pytest.raises(ValueError, match="granularity of decay 'constant' is 'channel'; allowed: scalar"):
        make_decay("constant", Placement(16), 2, 4, "channel")
    with pytest.raises(ValueError, match="tied keys need a decay"):
        make_mixer({"name": "gla", "decay": "none", "tied": True}, Placement(16))
    with pytest.raises(ValueError, match=r"mixer: gla: granularity is 'vector'; allowed: 'scalar', 'channel'"):
        make_mixer({"name": "gla", "granularity": "vector"}, Placement(16))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("name", "granularity"), CHOICES)
@pytest.mark.parametrize("mixer", ["gla", "gated_delta_net"])
def test_every_mixer_takes_every_decay(mixer: str, name: str, granularity: str, causal: bool) -> None:
    settings = {"name": mixer, "decay": name, "granularity": granularity}
    if mixer == "gla":
        settings["tied"] = name != "none"
    module = make_mixer(settings, Placement(32, layer=1, num_layers=2, causal=causal))
    initialize(module, seed=0)
    y, _ = module(torch.randn(2, 20, 32))
    assert 0.02 < y.square().mean().sqrt().item() < 5
    y.square().sum().backward()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("preset", ["simple", "retention", "tied"])
def test_presets_of_gla_cut_anywhere_give_the_same(preset: str) -> None:
    module = make_mixer({"name": "gla", "preset": preset}, Placement(32, layer=1, num_layers=2))
    initialize(module, seed=0)
    x = torch.randn(2, 20, 32)
    y, _ = module(x)
    first, state = module(x[:, :7], keep_state=True)
    second, _ = module(x[:, 7:], state=state)
    torch.testing.assert_close(torch.cat([first, second], 1), y)
