"""The mixers of the delta family against their papers' formulas, token by token, and against each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paribus.evaluation.contract.subjects import MIXER, agree, build, tokens
from paribus.nn.component import make_mixer
from paribus.nn.delta_parts import with_length
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Context, Placement
from paribus.nn.mixers.rwkv7 import RWKV7

T, D, H, K = 23, 16, 2, 8


def made(name: str, causal: bool, **settings: Any) -> Any:
    """A small mixer in float64, its parameters far from their initial values."""
    return build(MIXER, name, width=D, causal=causal, loud=True, settings={"num_heads": H, **settings})


def convolved(mixer: Any, part: int, x: Tensor) -> Tensor:
    """silu(conv(x)) of x [T, E], tap by tap."""
    weight, causal = mixer.convolutions[part].weight, mixer.placement.causal
    taps = weight.shape[1]
    before = taps - 1 if causal else taps // 2
    y = torch.zeros_like(x)
    for t in range(T):
        for j in range(taps):
            if 0 <= t + j - before < T:
                y[t] += weight[:, j] * x[t + j - before]
    return F.silu(y)


def heads(x: Tensor) -> Tensor:
    """[T, H K] -> [T, H, K]."""
    return x.unflatten(-1, (H, -1))


def unit(x: Tensor) -> Tensor:
    """Vectors of length one, as published."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def turned(S: Tensor, k: Tensor, v: Tensor, strength: Tensor) -> Tensor:
    """One step of the delta rule for states [H, K, V]."""
    return S + torch.einsum("h,hk,hv->hkv", strength, k, v - torch.einsum("hkv,hk->hv", S, k))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_delta_product(n: int, causal: bool) -> None:
    mixer = made("delta_product", causal, num_householder=n)
    x = tokens(1, T, width=D)[0]
    q = unit(heads(convolved(mixer, 0, mixer.query(x)))) * K**-0.5
    k, v = (convolved(mixer, 1 + i, project(x)).view(T, n, H, K) for i, project in enumerate((mixer.key, mixer.value)))
    k, strength = unit(k), 2 * mixer.strength(x).sigmoid().view(T, n, H)
    a = mixer.decay.log_decay(x[None], None)[0].exp()  # T H
    o = torch.zeros(T, H, K, dtype=x.dtype)
    S = torch.zeros(H, K, K, dtype=x.dtype)
    for t in range(T):
        S = a[t, :, None, None] * S
        for j in range(n):
            S = turned(S, k[t, j], v[t, j], strength[t, j])
        o[t] = torch.einsum("hkv,hk->hv", S, q[t])
    S = torch.zeros_like(S)
    for t in reversed(range(0 if not causal else T, T)):
        if t + 1 < T:
            S = a[t + 1, :, None, None] * S
        o[t] += torch.einsum("hkv,hk->hv", S, q[t])
        for j in reversed(range(n)):
            S = turned(S, k[t, j], v[t, j], strength[t, j])
    expected = mixer.output(F.silu(mixer.gate(x)) * mixer.norm(o).flatten(1))
    agree("delta_product", mixer(x[None])[0][0], expected, 1e-11)


@pytest.mark.parametrize("causal", [True, False])
def test_delta_product_of_one_step_is_gated_delta_net(causal: bool) -> None:
    product = made("delta_product", causal, num_householder=1)
    net = made("gated_delta_net", causal, negative_eigenvalues=True)
    net.load_state_dict(product.state_dict())
    x = tokens(2, T, width=D)
    agree("one step", product(x)[0], net(x)[0], 1e-12)


def test_gated_delta_net_that_keeps_everything_is_delta_net() -> None:
    gated = made("gated_delta_net", True, gated=False)
    plain = made("gated_delta_net", True, preset="delta_net")
    with torch.no_grad():
        gated.decay.bias.fill_(-1e4)
    plain.load_state_dict(gated.state_dict(), strict=False)
    x = tokens(2, T, width=D)
    agree("a = 1", gated(x)[0], plain(x)[0], 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_kda_with_equal_channels_is_gated_delta_net(causal: bool) -> None:
    kda, net = made("kda", causal), made("gated_delta_net", causal, gated=False)
    with torch.no_grad():
        kda.gate_up.weight.zero_()  # half of everything
        for start in range(0, D, K):
            kda.decay_up.weight[start : start + K] = kda.decay_up.weight[start]
            kda.decay_bias[start : start + K] = kda.decay_bias[start]
        net.load_state_dict(kda.state_dict(), strict=False)
        net.decay.project.weight.copy_((kda.decay_up.weight @ kda.decay_down.weight)[::K])
        net.decay.bias.copy_(kda.decay_bias[::K])
        net.decay.log_rate.copy_(kda.log_rate)
    x = tokens(2, T, width=D)
    agree("equal channels", 2 * kda(x)[0], net(x)[0], 1e-12)


def rwkv7(layer: int, causal: bool, initialization: str = "house") -> Any:
    """A loud RWKV-7 of one layer of three."""
    placement = Placement(width=D, layer=layer, num_layers=3, causal=causal)
    mixer = make_mixer({"name": "rwkv7", "num_heads": H, "rank": 4, "gate_rank": 5}, placement)
    initialize(mixer, seed=0)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(
                0.4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return mixer.double()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layer", [0, 2])
def test_rwkv7(layer: int, causal: bool) -> None:
    mixer = rwkv7(layer, causal)
    x, first = tokens(1, T, width=D)[0], tokens(1, T, width=D, seed=5)
    nothing = torch.zeros(1, D, dtype=x.dtype)
    past, future = torch.cat([nothing, x[:-1]]), torch.cat([x[1:], nothing])
    neighbour = past if causal else (past + future) / 2
    x_r, x_w, x_k, x_v, x_a, x_g = (x + (mu + 0.5) * (neighbour - x) for mu in mixer.shift)
    rise = 6 * (torch.arange(D, dtype=x.dtype) / (D - 1)) ** (1 + (layer / 2) ** 0.3) - 5.5
    low = {name: getattr(mixer, name) for name in ("decay", "rate", "gate", "first_share")}
    w = torch.exp(-(low["decay"].up(low["decay"].down(x_w).tanh()) + mixer.decay_bias + rise).sigmoid() / 1.6487212707)
    a = (low["rate"].up(low["rate"].down(x_a)) + mixer.rate_bias).sigmoid()
    g = low["gate"].up(low["gate"].down(x_g).sigmoid())
    r, k, v = mixer.receptance(x_r), mixer.key(x_k), mixer.value(x_v)
    if layer:
        share = (low["first_share"].up(low["first_share"].down(x_v)) + mixer.first_bias + 1).sigmoid()
        v = v + share * (first[0] - v)
    kappa = F.normalize(heads(k * (mixer.removal + 1)), dim=-1)
    k = k * (1 + (a - 1) * mixer.replacement)
    r, k, v, a, w = (heads(part) for part in (r, k, v, a, w))

    def read(order: list[int], before: bool) -> Tensor:
        S, o = torch.zeros(H, K, K, dtype=x.dtype), torch.zeros(T, H, K, dtype=x.dtype)
        for t in order:
            if before:
                o[t] = torch.einsum("hkv,hk->hv", S, r[t])
            removed = torch.einsum("hk,hl->hkl", a[t] * kappa[t], kappa[t])
            S = (torch.diag_embed(w[t]) - removed) @ S + torch.einsum("hk,hv->hkv", k[t], v[t])
            if not before:
                o[t] = torch.einsum("hkv,hk->hv", S, r[t])
        return o

    o = read(list(range(T)), False)
    if not causal:
        o = o + read(list(range(T))[::-1], True)
    o = F.group_norm(o.flatten(1), H, mixer.norm_weight, mixer.norm_bias, 1e-5 * K)
    o = o + ((r * mixer.bonus * k).sum(-1, keepdim=True) * v).flatten(1)
    context = Context(first_value=(0, first.unflatten(-1, (H, -1)))) if layer else Context()
    agree("rwkv7", mixer(x[None], context=context)[0][0], mixer.output(g * o), 1e-11)
    if not layer:
        assert context.first_value is not None and context.first_value[0] == 0
        agree("first value", context.first_value[1][0], v, 1e-12)


def test_rwkv7_computed_again_is_still_the_first_of_its_kind() -> None:
    mixer, context, x = rwkv7(2, True), Context(), tokens(1, T, width=D)
    answers = [mixer(x, context=context)[0] for _ in range(2)]
    assert torch.equal(*answers)


def test_rwkv7_as_published_forgets_at_rates_that_rise_over_channels() -> None:
    placement = Placement(width=64, layer=1, num_layers=4)
    mixer = make_mixer({"name": "rwkv7", "initialization": "paper"}, placement)
    assert isinstance(mixer, RWKV7)
    initialize(mixer, seed=0)
    starts = mixer.starts(torch.zeros(1))
    n, K = torch.arange(64), 16
    zigzag = (n % K - (K - 1) / 2) / ((K - 1) / 2)
    expected = -6 + 6 * (n / 63) ** (1 + (1 / 3) ** 0.3) + 0.5 + 2.5 * zigzag * zigzag.abs()
    torch.testing.assert_close(starts.decay, expected)
    assert isinstance(starts.shift, Tensor)
    torch.testing.assert_close(starts.shift[0], 1 - (n / 64) ** (0.2 * 0.75))
    assert not mixer.output.weight.any() and not mixer.decay.down.weight.any()


@pytest.mark.parametrize("solver", ["conjugate_gradient", "exact"])
@pytest.mark.parametrize("causal", [True, False])
def test_mesa_net(causal: bool, solver: str) -> None:
    mixer = made("mesa_net", causal, solver=solver)
    x = tokens(1, T, width=D)[0]
    q, k = (unit(heads(convolved(mixer, i, project(x)))) for i, project in enumerate((mixer.query, mixer.key)))
    v, strength = heads(mixer.value(x)), mixer.strength(x).sigmoid()
    G = mixer.decay.log_decay(x[None], None)[0].cumsum(0)  # T H
    weights = (-(G[:, None] - G[None]).abs()).exp() * strength  # T S H
    if causal:
        weights = weights * torch.ones(T, T, dtype=x.dtype).tril()[..., None]
    A = torch.einsum("tsh,shk,shl->thkl", weights, k, k)
    S = torch.einsum("tsh,shk,shv->thkv", weights, k, v)
    ridge = torch.diag_embed(F.softplus(mixer.ridge) + 0.25)
    o = torch.einsum("thkv,thk->thv", S, torch.linalg.solve(A + ridge, q))
    expected = mixer.output(mixer.norm(o).flatten(1))
    y = mixer(x[None])[0][0]
    agree("mesa_net", y, expected, 1e-10)
    parameters = list(mixer.parameters())
    direction = tokens(1, T, width=D, seed=3)[0]
    gradients = [torch.autograd.grad((answer * direction).sum(), parameters) for answer in (y, expected)]
    for got, wanted in zip(*gradients, strict=True):
        agree("mesa_net: gradient", got, wanted, 1e-9)


def test_vectors_with_length_and_their_gradient() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    agree("length", with_length(x, 0.5), 0.5 * unit(x), 1e-14)
    assert torch.autograd.gradcheck(lambda x: with_length(x, 0.5), (x,))
    zero = torch.zeros(2, 4, requires_grad=True)
    with_length(zero).sum().backward()
    assert zero.grad is not None and zero.grad.isfinite().all()
