"""Decays: their ranges, shapes and closed forms, and the mixers that choose them by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paribus.evaluation.contract.subjects import Pair, in_pieces, shake
from paribus.nn.component import make_mixer
from paribus.nn.decay import DECAYS, Decay, Gate, make_decay
from paribus.nn.initialization import initialize
from paribus.nn.lower_bound import LowerBound, bounded_log_decay
from paribus.nn.mixer import Context, Mixer, Placement, make_context
from paribus.nn.segments import resolve

CHOICES = [(name, granularity) for name, decay in DECAYS.items() for granularity in decay.granularities]
SHAPES = {"scalar": (3, 5, 2), "channel": (3, 5, 2, 4)}


def decay_of(name: str, granularity: str, layer: int = 1, num_layers: int = 2) -> Decay:
    placement = Placement(16, layer=layer, num_layers=num_layers)
    decay = make_decay(name, placement, 2, 4, granularity)  # type: ignore[arg-type]
    initialize(decay, seed=0)
    return decay


def log_decay_of(decay: Decay, x: Tensor, context: Context | None = None) -> Any:
    return decay(x, resolve(x, None, None), None, context).log_decay


@pytest.mark.parametrize(("name", "granularity"), CHOICES)
def test_log_decays_have_their_shape_and_are_never_positive(name: str, granularity: str) -> None:
    log_decay = log_decay_of(decay_of(name, granularity), torch.randn(3, 5, 16))
    if name == "none":
        assert log_decay is None
        return
    constant = name.startswith("constant") or (name, granularity) == ("learned", "scalar")
    assert log_decay.shape == ((2,) if constant else SHAPES[granularity])
    assert log_decay.dtype == torch.float32
    assert log_decay.isfinite().all() and (log_decay < 0).all()


@pytest.mark.parametrize(("name", "granularity"), CHOICES)
def test_every_parameter_gets_a_gradient(name: str, granularity: str) -> None:
    layers = nn.ModuleList(decay_of(name, granularity, layer) for layer in (0, 1))
    x, context = torch.randn(3, 5, 16), make_context(layers)
    if not list(layers.parameters()):
        return
    torch.stack([log_decay_of(decay, x, context) for decay in layers]).sum().backward()
    for part, parameter in layers.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), part
        assert parameter.grad.abs().sum() > 0 or part == "0.bound.weight", part  # one row of two moves the other's


@pytest.mark.parametrize(("name", "granularity"), CHOICES)
def test_half_precision_and_autocast_give_float32(name: str, granularity: str) -> None:
    decay, x = decay_of(name, granularity), torch.randn(3, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = log_decay_of(decay, x)
    half = log_decay_of(decay.bfloat16(), x.bfloat16())
    for log_decay in (mixed, half):
        assert log_decay is None or log_decay.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant_retnet", [math.log(1 - 2.0**-5), math.log(1 - 2.0**-6)]),
        ("constant_tnl", [-4 * 0.75, -8 * 0.75]),
        ("constant_alibi", [-(2.0**-4), -(2.0**-8)]),
        ("constant_log_spaced", [-0.75 / 2, -0.75 / 256]),
        ("learned", [-1 / 2, -1 / 256]),
    ],
)
def test_slopes(name: str, expected: list[float]) -> None:
    log_decay = log_decay_of(decay_of(name, "scalar", layer=1, num_layers=4), torch.randn(1, 1, 16))
    torch.testing.assert_close(log_decay, torch.tensor(expected))


def test_closed_forms() -> None:
    x = torch.randn(3, 5, 16)
    gla = decay_of("sigmoid_temperature", "channel")
    expected = (gla.up(gla.down(x)) + gla.bias).sigmoid() ** (1 / 16)
    torch.testing.assert_close(log_decay_of(gla, x).exp().flatten(2), expected)
    sigmoid = decay_of("sigmoid", "scalar")
    torch.testing.assert_close(log_decay_of(sigmoid, x).exp(), (sigmoid.project(x) + 4).sigmoid())
    offset = decay_of("sigmoid_offset", "scalar")
    torch.testing.assert_close(log_decay_of(offset, x).exp(), (offset.project(x) + math.log(99)).sigmoid())
    for name in ("mamba", "mamba_no_rate", "mamba_no_step", "mamba_no_rate_no_step"):
        mamba = decay_of(name, "scalar")
        step = nn.functional.softplus(mamba.project(x) + (0 if mamba.bias is None else mamba.bias))
        expected = -step if mamba.log_rate is None else -mamba.log_rate.exp() * step
        torch.testing.assert_close(log_decay_of(mamba, x), expected)


def test_log_sums_are_softmaxes_over_the_tokens_so_far() -> None:
    x = 3 * torch.randn(2, 9, 16, dtype=torch.float64)
    for name, positive in (("lightnet", torch.exp), ("log_sum_softplus", nn.functional.softplus)):
        decay = decay_of(name, "channel").double()
        keys = positive(decay.project(x))
        sums = 1 + keys.cumsum(1)
        before = torch.cat([torch.ones_like(sums[:, :1]), sums[:, :-1]], 1)
        gate = decay(x, resolve(x, None, None), None, None)
        torch.testing.assert_close(gate.log_decay.exp().flatten(2), before / sums)
        torch.testing.assert_close(gate.complement.flatten(2), keys / sums)
        torch.testing.assert_close(gate.state, sums[:, -1].log())


def test_lower_bounds_are_shares_of_a_softmax_over_the_layers() -> None:
    bounds = nn.ModuleList(LowerBound(Placement(16, layer=layer), 3) for layer in (1, 4, 6))
    initialize(bounds, seed=0)
    context = make_context(bounds)
    for index, bound in enumerate(bounds):
        torch.testing.assert_close(bound(context), torch.full((3,), index / 3))
    shake(bounds)
    P = torch.stack([bound.weight for bound in bounds])
    expected = P.softmax(0).cumsum(0) - P.softmax(0)[:1]
    context = make_context(bounds)
    torch.testing.assert_close(torch.stack([bound(context) for bound in bounds]), expected)
    assert not bounds[2](None).any(), "alone there is only a first layer"


def test_bounded_decays_are_exact_at_any_logit_and_bound() -> None:
    logits = torch.tensor([-1e4, -200.0, -3.0, 0.0, 7.0, 200.0], dtype=torch.float64)
    for limit in (0.0, 2.0**-100, 0.25, 1 - 2.0**-10):  # without a rounding error in float32
        bound, z = (x.clone().requires_grad_() for x in (torch.full_like(logits, limit), logits))
        log_decay = bounded_log_decay(z, bound)
        torch.testing.assert_close(log_decay.exp(), limit + (1 - limit) * logits.sigmoid(), rtol=1e-12, atol=0)
        torch.testing.assert_close(-log_decay.expm1(), (1 - limit) * (-logits).sigmoid(), rtol=1e-12, atol=0)
        gradients = torch.autograd.grad(log_decay.sum(), [z, bound])
        assert all(gradient.isfinite().all() for gradient in gradients)
        in_float32 = bounded_log_decay(z.float(), bound.float())
        torch.testing.assert_close(in_float32.double(), log_decay, rtol=1e-5, atol=1e-30)
    assert torch.autograd.gradcheck(bounded_log_decay, [0.1 * z, 0.5 * bound])


def test_the_complement_is_exact_where_decay_is_weak() -> None:
    log_decay = torch.tensor([-1e-9, -1.0]).expand(2, 3, 2)
    expected = torch.tensor([1e-9, 1 - math.exp(-1)]).expand(2, 3, 2)[..., None]
    torch.testing.assert_close(Gate(log_decay).complement, expected)
    assert Gate(torch.zeros(2, 3, 2, 4)).complement.shape == (2, 3, 2, 4)
    assert Gate(torch.zeros(2)).complement.shape == (2, 1)


def test_bad_choices_are_one_clear_line() -> None:
    with pytest.raises(ValueError, match="unknown decay 'mambo'; did you mean 'mamba'"):
        make_decay("mambo", Placement(16), 2, 4)
    with pytest.raises(ValueError, match="granularity of decay 'constant_tnl' is 'channel'; allowed: scalar"):
        make_decay("constant_tnl", Placement(16), 2, 4, "channel")
    with pytest.raises(ValueError, match="tied keys need a decay"):
        make_mixer({"name": "gla", "decay": "none", "tied": True}, Placement(16))
    with pytest.raises(ValueError, match=r"mixer: gla: granularity is 'vector'; allowed: 'scalar', 'channel'"):
        make_mixer({"name": "gla", "granularity": "vector"}, Placement(16))


def mixer_of(mixer: str, name: str, granularity: str, layer: int, causal: bool = True) -> Mixer:
    settings = {"name": mixer, "decay": name, "granularity": granularity}
    if mixer == "gla":
        settings["tied"] = name != "none"
    module = make_mixer(settings, Placement(32, layer=layer, num_layers=2, causal=causal))
    initialize(module, seed=0)
    return module


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("name", "granularity"), CHOICES)
@pytest.mark.parametrize("mixer", ["gla", "gated_delta_net"])
def test_every_mixer_takes_every_decay(mixer: str, name: str, granularity: str, causal: bool) -> None:
    pair = Pair(*(mixer_of(mixer, name, granularity, layer, causal) for layer in (0, 1)))
    y = pair(torch.randn(2, 20, 32))
    assert 0.01 < y.square().mean().sqrt().item() < 5
    y.square().sum().backward()
    for part, parameter in pair.named_parameters():
        assert parameter.grad is not None, part
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, part


@pytest.mark.parametrize(("name", "granularity"), CHOICES)
@pytest.mark.parametrize("mixer", ["gla", "gated_delta_net"])
def test_cut_anywhere_with_any_decay_gives_the_same(mixer: str, name: str, granularity: str) -> None:
    module, x = mixer_of(mixer, name, granularity, 0).double(), 2 * torch.randn(3, 40, 32, dtype=torch.float64)
    segments = torch.ones(3, 40, dtype=torch.long)
    segments[1, 17:], segments[1, 30:], segments[2, :5], segments[2, 20:23], segments[2, 33:] = 2, 4, 0, 0, 5
    for marks in (None, segments):
        whole, _ = module(x, segments=marks)
        torch.testing.assert_close(in_pieces(module, x, marks, (7, 8, 25)), whole, rtol=1e-10, atol=1e-10)
    packed, _ = module(x[1:2], segments=segments[1:2])
    alone = torch.cat([module(part)[0] for part in x[1:2].split((17, 13, 10), 1)], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-10)
