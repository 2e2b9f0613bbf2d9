"""Mixers made of a scan: each equals its paper's formula, written out step by step, with gradients, both directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paribus.evaluation.contract.subjects import shake
from paribus.nn.component import make_mixer
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Context, Mixer, Placement, make_context
from tests.unit.nn.kernel_cases import close

D, T = 8, 11
Formula = Callable[[Any, Tensor], Tensor]


def made(name: str, causal: bool, layers: int = 1, width: int = D, **settings: Any) -> list[Any]:
    """One mixer for each layer, in float64, with noise on every parameter."""
    mixers = []
    for layer in range(layers):
        placement = Placement(width=width, layer=layer, num_layers=layers, causal=causal)
        mixer = make_mixer({"name": name, **settings}, placement)
        initialize(mixer, seed=layer)
        shake(mixer)
        mixers.append(mixer.double())
    return mixers


def agree(mixer: Mixer, formula: Formula, model: nn.Module, context: Context | None = None) -> None:
    """Outputs and the gradients of x and of every parameter of the model are the formula's."""
    torch.manual_seed(0)
    x, weights = torch.randn(2, T, D, dtype=torch.float64).requires_grad_(), torch.randn(2, T, D, dtype=torch.float64)
    y, expected = mixer(x, context=context)[0], formula(mixer, x)
    close(y, expected, 1e-12)
    leaves = [x, *model.parameters()]
    gradients = (
        torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True, materialize_grads=True)
        for out in (y, expected)
    )
    close(*gradients, 1e-11)


def recur(a: Tensor, x: Tensor, causal: bool) -> Tensor:
    """h[t] = a[t] h[t-1] + x[t]; two-directional: and what comes from behind, a[t+1] (b[t+1] + x[t+1])."""
    h, before = [], torch.zeros_like(x[:, 0])
    for t in range(T):
        before = a[:, t] * before + x[:, t]
        h.append(before)
    if not causal:
        behind = torch.zeros_like(x[:, 0])
        for t in range(T - 2, -1, -1):
            behind = a[:, t + 1] * (behind + x[:, t + 1])
            h[t] = h[t] + behind
    return torch.stack(h, 1)


def short(x: Tensor, weight: Tensor, causal: bool) -> Tensor:
    """y[t] = Σ_j weight[:, j] x[t - before + j]."""
    taps = weight.shape[1]
    before = taps - 1 if causal else taps // 2
    y = torch.zeros_like(x)
    for t in range(T):
        for j in range(taps):
            if 0 <= t - before + j < T:
                y[:, t] += weight[:, j] * x[:, t - before + j]
    return y


def min_gru(m: Any, x: Tensor) -> Tensor:
    z = torch.sigmoid(x @ m.update.weight.T - m.forget_bias)
    candidate = x @ m.candidate.weight.T
    if m.config.candidate == "positive":
        candidate = torch.where(candidate >= 0, candidate + 0.5, torch.sigmoid(candidate))
    return recur(1 - z, z * candidate, m.placement.causal) @ m.output.weight.T


def min_lstm(m: Any, x: Tensor) -> Tensor:
    f = torch.sigmoid(x @ m.forget.weight.T + m.forget_bias)
    i = torch.sigmoid(x @ m.take.weight.T + m.take_bias)
    candidate = x @ m.candidate.weight.T
    if m.config.candidate == "positive":
        candidate = torch.where(candidate >= 0, candidate + 0.5, torch.sigmoid(candidate))
    return recur(f / (f + i), i / (f + i) * candidate, m.placement.causal) @ m.output.weight.T


def lru(m: Any, x: Tensor) -> Tensor:
    B = torch.complex(m.input.weight[0::2], m.input.weight[1::2])  # N D
    C = torch.complex(m.output.weight[:, 0::2], -m.output.weight[:, 1::2])  # D N: Re(C h) has − Im C Im h
    eigenvalues = torch.exp(torch.complex(-m.log_rate.exp(), m.log_phase.exp()))
    inputs = m.log_scale.exp() * (x.to(B.dtype) @ B.T)
    h = recur(eigenvalues.expand_as(inputs), inputs, m.placement.causal)
    return (h @ C.T).real + m.skip * x


def s4d(m: Any, x: Tensor) -> Tensor:
    A = torch.complex(-m.log_damping.exp(), m.frequency)  # N D
    step = m.log_step.exp()
    kept, taken = torch.exp(step * A), (torch.exp(step * A) - 1) / A
    inputs = taken * x[:, :, None]  # B T N D
    h = recur(kept.expand_as(inputs), inputs, m.placement.causal)
    v = F.gelu(2 * (torch.view_as_complex(m.read) * h).sum(2).real + m.skip * x)
    return v @ m.value.weight.T * torch.sigmoid(v @ m.gate.weight.T)


def mamba(m: Any, x: Tensor) -> Tensor:
    N, rank, causal = m.config.states, m.step_rank, m.placement.causal
    u = F.silu(short(x @ m.input.weight.T, m.convolution, causal) + m.convolution_bias)
    selected = u @ m.select.weight.T
    write, read = selected[..., rank : rank + N], selected[..., rank + N :]
    step = F.softplus(selected[..., :rank] @ m.step.weight.T + m.step_bias)
    kept = torch.exp(-step[:, :, None] * m.log_rate.exp())  # B T N E
    h = recur(kept, (step * u)[:, :, None] * write[..., None], causal)
    v = (read[..., None] * h).sum(2) + m.skip * u
    return (F.silu(x @ m.gate.weight.T) * v) @ m.output.weight.T


def rg_lru(m: Any, x: Tensor) -> Tensor:
    causal, biases = m.placement.causal, m.config.biases

    def linear(part: nn.Linear, x: Tensor) -> Tensor:
        return x @ part.weight.T + (part.bias if biases else 0)

    def gate(weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.sigmoid(u @ torch.block_diag(*weight) + (0 if bias is None else bias))

    u = short(linear(m.input, x), m.convolution, causal) + (m.convolution_bias if biases else 0)
    r, i = gate(m.recurrence_gate, m.recurrence_bias), gate(m.input_gate, m.input_bias)
    a = torch.exp(-8 * F.softplus(m.rate) * r)
    scale = torch.sqrt(1 - a**2)
    if m.config.full_start:
        scale = torch.cat([torch.ones_like(scale[:, :1]), scale[:, 1:]], 1)
    return linear(m.output, F.gelu(linear(m.gate, x)) * recur(a, scale * i * u, causal))


def hgrn1(m: Any, x: Tensor, bound: Tensor) -> Tensor:
    f = bound + (1 - bound) * torch.sigmoid(x @ m.forget.weight.T)
    c, causal = F.silu(x @ m.input.weight.T), m.placement.causal
    if m.config.form == "real":
        h = recur(f, (1 - f) * c, causal)
    else:
        states = recur(f * torch.exp(1j * m.phase), (1 - f) * torch.complex(c[..., 0::2], c[..., 1::2]), causal)
        h = torch.stack([states.real, states.imag], -1).flatten(-2)
    gated = F.silu(x @ m.gate.weight.T) * h
    normed = gated / torch.sqrt(gated.square().mean(-1, keepdim=True) + m.norm.eps) * m.norm.weight
    return normed @ m.output.weight.T


CASES: dict[str, tuple[Formula, dict[str, Any]]] = {
    "min_gru": (min_gru, {}),
    "min_gru linear": (min_gru, {"candidate": "linear", "expansion": 1.5}),
    "min_lstm": (min_lstm, {}),
    "min_lstm linear": (min_lstm, {"candidate": "linear", "expansion": 1.5}),
    "lru": (lru, {"states": 6}),
    "s4d": (s4d, {"modes": 3}),
    "s4d convolution": (s4d, {"modes": 3, "form": "convolution", "spectrum": "inv"}),
    "mamba": (mamba, {"states": 3, "step_rank": 2}),
    "rg_lru": (rg_lru, {"num_heads": 2, "expansion": 1.5}),
    "rg_lru with biases": (rg_lru, {"num_heads": 2, "biases": True, "full_start": True}),
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_equals_its_formula(case: str, causal: bool) -> None:
    formula, settings = CASES[case]
    (mixer,) = made(case.split()[0], causal, **settings)
    agree(mixer, formula, mixer)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", ["complex", "real"])
def test_hgrn1_equals_its_formula_in_every_layer(form: str, causal: bool) -> None:
    layers = made("hgrn1", causal, layers=3, form=form)
    model = nn.ModuleList(layers)

    def formula(m: Any, x: Tensor) -> Tensor:
        shares = torch.softmax(torch.stack([layer.bound.weight for layer in layers]), 0)
        return hgrn1(m, x, (shares.cumsum(0) - shares[0])[m.placement.layer])

    for layer in layers:
        agree(layer, formula, model, make_context(model))


def test_s4d_as_a_convolution_is_s4d_as_a_scan() -> None:
    """Float32, a thousand tokens, both spectra: outputs, and the gradient of x."""
    for spectrum in ("lin", "inv"):
        for causal in (True, False):
            scan, convolution = (
                made("s4d", causal, spectrum=spectrum, form=form)[0].float() for form in ("scan", "convolution")
            )
            x = torch.randn(2, 1000, D, requires_grad=True)
            outputs = [mixer(x)[0] for mixer in (scan, convolution)]
            close(outputs[1], outputs[0], 1e-4)
            gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in outputs]
            close(gradients[1], gradients[0], 1e-4)


def test_beginnings_are_the_papers() -> None:
    """What each paper says of the values at the beginning of training."""

    def fresh(name: str, **settings: Any) -> Any:
        mixer = make_mixer({"name": name, **settings}, Placement(width=64, layer=0, num_layers=4))
        initialize(mixer, seed=0)
        return mixer

    mixer = fresh("mamba", preset="paper")
    torch.testing.assert_close(mixer.log_rate.exp(), torch.arange(1.0, 17)[:, None].expand(16, 128))
    step = F.softplus(mixer.step_bias)
    assert 0.001 <= step.min() < 0.0013 and 0.08 < step.max() <= 0.1
    assert 0.95 < mixer.output.weight.abs().max() * 128**0.5 * 4**0.5 <= 1
    mixer = fresh("lru", states=4000, shortest=0.5, longest=0.9, phase=1.0, initialization="paper")
    size = torch.exp(-mixer.log_rate.exp())
    assert size.min() >= 0.5 and size.max() <= 0.9
    inner = (size < (0.5 * (0.25 + 0.81)) ** 0.5).float().mean()  # half the area of the ring
    assert abs(inner - 0.5) < 0.03
    assert abs(mixer.log_phase.exp().mean() - 0.5) < 0.03
    torch.testing.assert_close(mixer.log_scale.exp(), (1 - size**2).sqrt())
    mixer = fresh("rg_lru", num_heads=1, expansion=64.0, initialization="paper")
    decays = torch.exp(-8 * F.softplus(mixer.rate))
    assert decays.min() >= 0.9 and decays.max() <= 0.999 and abs(decays.mean() - 0.9495) < 0.003
    mixer = fresh("hgrn1")
    torch.testing.assert_close(mixer.phase, torch.tensor([10_000 ** (-2 * j / 64) for j in range(64)]))
    lin, inv = fresh("s4d").frequency[:, 0], fresh("s4d", preset="inv").frequency[:, 0]
    torch.testing.assert_close(lin[:3], torch.tensor([0, math.pi, 2 * math.pi]))
    torch.testing.assert_close(inv[:2], torch.tensor([64 / math.pi * 63, 64 / math.pi * (64 / 3 - 1)]))


def test_the_first_layers_bound_is_zero_and_bounds_rise() -> None:
    layers = made("hgrn1", True, layers=4)
    context = make_context(nn.ModuleList(layers))
    bounds = [layer.bound(context) for layer in layers]
    assert not bounds[0].any()
    assert all((low < high).all() for low, high in pairwise(bounds))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mamba", {"expansion": 0.0}, "mamba: expansion is 0.0; a positive number is needed"),
        ("mamba", {"states": 0}, "mamba: states is 0; at least 1 is needed"),
        ("mamba", {"step_rank": 0}, "mamba: step_rank is 0; at least 1 is needed"),
        ("min_gru", {"expansion": -1.0}, "min_gru: expansion is -1.0; a positive number is needed"),
        ("min_lstm", {"expansion": -1.0}, "min_lstm: expansion is -1.0; a positive number is needed"),
        ("lru", {"states": 0}, "lru: states is 0; at least 1 is needed"),
        ("lru", {"longest": 1.0}, "lru: shortest 0.9, longest 1.0, phase .*; 0 <= shortest < longest < 1"),
        ("s4d", {"modes": 0}, "s4d: modes is 0; at least 1 is needed"),
    ],
)
def test_impossible_settings_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, True, **settings)
