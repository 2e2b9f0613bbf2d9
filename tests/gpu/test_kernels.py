"""Every kernel gives on the GPU what it gives on the CPU: outputs, states and gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from paribus.nn.kernels.attention import attention
from paribus.nn.kernels.convolution import convolution, short_convolution
from paribus.nn.kernels.delta import delta
from paribus.nn.kernels.recurrence import recurrence
from paribus.nn.kernels.scan import scan
from paribus.nn.kernels.shared_keys import shared_recurrence
from paribus.nn.kernels.state_space import state_space_scan
from paribus.nn.kernels.tokens import mix_tokens
from paribus.nn.segments import Rows, resolve
from paribus.nn.state import state_tensors
from tests.unit.nn.kernel_cases import close, random_segments, real

pytestmark = pytest.mark.gpu

B, T, H, K, V, E, N = 3, 70, 2, 4, 5, 6, 3
Call = Callable[[list[Tensor], Rows, bool], tuple[Tensor, Any]]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def log_decay(*shape: int) -> Tensor:
    return -torch.rand(shape, dtype=torch.float64)


def unit(*shape: int) -> Tensor:
    return functional.normalize(normal(*shape), dim=-1)


DECAYS: dict[str, list[Tensor]] = {
    "none": [],
    "constant": [log_decay(H)],
    "scalar": [log_decay(B, T, H)],
    "channel": [log_decay(B, T, H, K)],
}


def gated(kernel: str, **options: Any) -> Call:
    """q, k, v (and the strength), then the decay if there is one."""

    def call(leaves: list[Tensor], rows: Rows, causal: bool) -> tuple[Tensor, Any]:
        count = 3 if kernel == "recurrence" else 4
        decay = leaves[count] if len(leaves) > count else None
        run = recurrence if kernel == "recurrence" else delta
        return run(*leaves[:count], decay, rows=rows, state=None, causal=causal, **options)

    return call


def with_bonus(leaves: list[Tensor], rows: Rows, causal: bool) -> tuple[Tensor, Any]:
    return recurrence(*leaves[:4], rows=rows, state=None, causal=causal, bonus=leaves[4])


def low_rank(leaves: list[Tensor], rows: Rows, causal: bool) -> tuple[Tensor, Any]:
    q, k, strength, decay, erase, k2, v2 = leaves
    options = {"rows": rows, "state": None, "causal": causal, "erase": erase, "write": (k2, v2)}
    return delta(q, k, None, strength, decay, **options)


def softmax_attention(leaves: list[Tensor], rows: Rows, causal: bool) -> tuple[Tensor, Any]:
    return attention(*leaves, rows=rows, state=None, causal=causal, scale=0.5)


def plain(kernel: Callable[..., tuple[Tensor, Any]]) -> Call:
    return lambda leaves, rows, causal: kernel(*leaves, rows=rows, state=None, causal=causal)


def long_convolution(leaves: list[Tensor], rows: Rows, causal: bool) -> tuple[Tensor, Any]:
    x, taps = leaves
    lags = torch.cat([taps, taps.flip(0)[:-1]])
    return convolution(x, lambda n: (taps if causal else lags)[: n if causal else 2 * n - 1], **_where(rows, causal))


def _where(rows: Rows, causal: bool) -> dict[str, Any]:
    return {"rows": rows, "state": None, "causal": causal}


def heads() -> list[Tensor]:
    return [normal(B, T, H, K), unit(B, T, H, K), normal(B, T, H, V)]


CASES: dict[str, tuple[Call, list[Tensor]]] = {
    "attention": (softmax_attention, [normal(B, T, H, K) for _ in range(3)]),
    **{f"recurrence {kind}": (gated("recurrence"), [*heads(), *decay]) for kind, decay in DECAYS.items()},
    "recurrence value": (
        gated("recurrence", readout="value"),
        [normal(B, T, H, V), *heads()[1:], *DECAYS["channel"]],
    ),
    "recurrence shared keys": (
        plain(shared_recurrence),
        [normal(B, T, 1, K), normal(B, T, 1, K), normal(B, T, H, V), *DECAYS["scalar"]],
    ),
    "recurrence bonus": (with_bonus, [*heads(), *DECAYS["channel"], normal(H, K)]),
    **{
        f"delta {kind}": (gated("delta"), [*heads(), torch.rand(B, T, H).double(), *decay])
        for kind, decay in DECAYS.items()
    },
    "delta low rank": (
        low_rank,
        [*heads()[:2], torch.rand(B, T, H).double(), *DECAYS["channel"], unit(B, T, H, K), *heads()[1:]],
    ),
    "scan": (plain(scan), [normal(B, T, E), log_decay(B, T, E)]),
    "complex scan": (
        plain(scan),
        [torch.complex(normal(B, T, E), normal(B, T, E)), torch.complex(log_decay(B, T, E), normal(B, T, E))],
    ),
    "state space": (
        plain(state_space_scan),
        [normal(B, T, E), -log_decay(B, T, E), log_decay(N, E), normal(B, T, N), normal(B, T, N)],
    ),
    "short convolution": (plain(short_convolution), [normal(B, T, E), normal(E, 4)]),
    "convolution": (long_convolution, [normal(B, T, E), normal(T, E)]),
    "tokens": (plain(mix_tokens), [normal(B, T, H, V), normal(H, T, T)]),
}


def answers(call: Call, leaves: list[Tensor], segments: Tensor | None, causal: bool, device: str) -> list[Tensor]:
    """Output, states and gradients, computed on `device` and brought back."""
    moved = [leaf.detach().to(device).requires_grad_() for leaf in leaves]
    marks = None if segments is None else segments.to(device)
    y, state = call(moved, resolve(moved[0], marks, None), causal)
    found = [real(y, marks), *(tensor for tensor in state_tensors(state) if tensor.is_floating_point())]
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(tensor.shape, generator=draw, dtype=torch.float64).to(device) for tensor in found]
    loss = sum((tensor * weight).real.sum() for tensor, weight in zip(found, weights, strict=True))
    assert isinstance(loss, Tensor)
    gradients = torch.autograd.grad(loss, moved, allow_unused=True, materialize_grads=True)
    assert all(tensor.device.type == torch.device(device).type for tensor in (*found, *gradients))
    return [tensor.detach().cpu() for tensor in (*found, *gradients)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("name", CASES)
def test_the_gpu_agrees_with_the_cpu(name: str, layout: str, causal: bool, device: torch.device) -> None:
    call, leaves = CASES[name]
    segments = random_segments(B, T) if layout == "segments" else None
    expected = answers(call, leaves, segments, causal, "cpu")
    close(answers(call, leaves, segments, causal, str(device)), expected, 1e-9)
