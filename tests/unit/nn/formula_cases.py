"""What the tests of mixers share: a mixer beside its paper's formula, written out token by token in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from paribus.evaluation.contract.subjects import shake
from paribus.nn.component import make_mixer
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Context, Mixer, Placement

LENGTHS = [1, 7, 65]
WIDTH, HEADS = 12, 3


def mixer_of(name: str, causal: bool = True, layer: int = 0, num_layers: int = 2, **settings: Any) -> Any:
    """A mixer in float64 with noise on every parameter, so that nothing is zero or one by accident."""
    placement = Placement(WIDTH, layer=layer, num_layers=num_layers, causal=causal)
    mixer = make_mixer({"name": name, "num_heads": HEADS, **settings}, placement)
    initialize(mixer, seed=0)
    shake(mixer)
    return mixer.double()


def tokens_of(length: int) -> Tensor:
    """[2, length, WIDTH]."""
    draw = torch.Generator().manual_seed(length)
    return torch.randn(2, length, WIDTH, generator=draw, dtype=torch.float64).requires_grad_()


def heads_of(x: Tensor, num_heads: int = HEADS) -> Tensor:
    """[B, T, H·K] -> [B, T, H, K]."""
    return x.unflatten(-1, (num_heads, -1))


def check_formula(
    mixer: Mixer, formula: Callable[[Tensor], Tensor], length: int, context: Context | None = None
) -> None:
    """Outputs, and the gradients of the input and of every parameter, are those of the formula."""
    x = tokens_of(length)
    draw = torch.Generator().manual_seed(1)
    weights = torch.randn(x.shape, generator=draw, dtype=torch.float64)
    leaves = {"x": x, **dict(mixer.named_parameters())}
    results = []
    for y in (mixer(x, context=context)[0], formula(x)):
        gradients = torch.autograd.grad((y * weights).sum(), list(leaves.values()), materialize_grads=True)
        results.append({"y": y.detach(), **dict(zip(leaves, gradients, strict=True))})
    got, expected = results
    for part, value in expected.items():
        torch.testing.assert_close(
            got[part], value, rtol=1e-9, atol=1e-11, msg=lambda text, part=part: f"{part}: {text}"
        )


def recur(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, causal: bool, readout: str = "key") -> Tensor:
    """S[t] = Diag(a[t]) S[t-1] + k[t] v[t]ᵀ, read with q: Sᵀ q or S q.

    Two-directional, what each token reads is what lies before it and itself, and what lies after it, read backwards:
    between two tokens lie the decays of the later one and of all that are between them.

    Args:
        log_decay: [B, T, H, K], or [B, T, H, 1] for one decay a head.
    """
    equation = "bhkv,bhk->bhv" if readout == "key" else "bhkv,bhv->bhk"
    steps = list(zip(*(x.unbind(1) for x in (q, k, v, log_decay.exp())), strict=True))
    S, outputs = torch.zeros_like(k[:, 0, :, :, None] * v[:, 0, :, None]), []
    for q_t, k_t, v_t, a_t in steps:
        S = a_t[..., None] * S + k_t[..., None] * v_t[..., None, :]
        outputs.append(torch.einsum(equation, S, q_t))
    S = torch.zeros_like(S)
    for t, (q_t, k_t, v_t, a_t) in reversed([] if causal else list(enumerate(steps))):
        outputs[t] = outputs[t] + torch.einsum(equation, S, q_t)
        S = a_t[..., None] * (S + k_t[..., None] * v_t[..., None, :])
    return torch.stack(outputs, 1)


def rms(x: Tensor, weight: Tensor | float = 1.0, eps: float = 1e-6) -> Tensor:
    """RMSNorm of the last axis."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def convolve(x: Tensor, taps: Tensor, causal: bool) -> Tensor:
    """Each channel with its own taps: the present token and those before it, or as many before as after and one."""
    W = taps.shape[1]
    before = W - 1 if causal else W // 2
    padded = pad(x, (0, 0, before, W - 1 - before))
    return torch.stack([(padded[:, t : t + W] * taps.T).sum(1) for t in range(x.shape[1])], 1)
