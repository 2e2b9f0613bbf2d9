"""flash-linear-attention computes what our kernels compute: outputs, final states, gradients, and whole runs.

Its errors are measured as its own tests measure them, by the root mean square relative to the answer's, and bounded as
there: 0.005 where products are those of tensor cores.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from paribus.nn.kernels.choice import using
from paribus.nn.kernels.delta import delta
from paribus.nn.kernels.fla import implementation
from paribus.nn.kernels.recurrence import recurrence
from paribus.nn.segments import resolve
from paribus.training.loop import train
from tests import small
from tests.unit.nn.kernel_cases import random_segments, real

pytestmark = pytest.mark.gpu

B, T, H, K, V = 3, 200, 2, 32, 64
BOUND = 0.005


def draw(
    device: torch.device, kernel: str, kind: str, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """Tokens, decay and state in float32 of which the tokens are exact in `dtype`."""
    q, v = torch.randn(B, T, H, K, device=device), torch.randn(B, T, H, V, device=device)
    k = functional.normalize(torch.randn(B, T, H, K, device=device), dim=-1)
    shapes: dict[str, tuple[int, ...]] = {"constant": (H,), "scalar": (B, T, H), "channel": (B, T, H, K)}
    decay = None if kind == "none" else (-torch.rand(shapes[kind], device=device) / 4).requires_grad_()
    tokens = [q, k, v, *([torch.rand(B, T, H, device=device)] if kernel == "delta" else [])]
    state = torch.randn(B, H, K, V, device=device).requires_grad_()
    return [x.to(dtype).requires_grad_() for x in tokens], decay, state


def answers(
    call: Callable[..., tuple[Tensor, Tensor | None]], leaves: list[Tensor], segments: Tensor | None, **options: Any
) -> list[Tensor]:
    """Output, last state and the gradients of `leaves`."""
    rows = resolve(leaves[0], segments, None)
    o, last = call(rows=rows, **options)
    assert last is not None
    found = [real(o, segments).float(), last]
    generator = torch.Generator(o.device).manual_seed(0)
    weights = [torch.randn(x.shape, generator=generator, device=x.device) for x in found]
    loss = torch.stack([(x * w).sum() for x, w in zip(found, weights, strict=True)]).sum()
    return [*found, *torch.autograd.grad(loss, leaves)]


def compare(call: Callable[..., tuple[Tensor, Tensor | None]], leaves: list[Tensor], device: torch.device) -> None:
    for segments in (None, random_segments(B, T).to(device)):
        ours = answers(call, leaves, segments)
        with using(implementation()):
            theirs = answers(call, leaves, segments)
        for index, (found, expected) in enumerate(zip(theirs, ours, strict=True)):
            error = (found.float() - expected.float()).square().mean().sqrt()
            assert error <= BOUND * expected.float().square().mean().sqrt() + 1e-6, f"tensor {index}: {error:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["none", "constant", "scalar", "channel"])
@pytest.mark.parametrize("kernel", ["recurrence", "delta"])
def test_decays(kernel: str, kind: str, dtype: torch.dtype, device: torch.device) -> None:
    tokens, decay, state = draw(device, kernel, kind, dtype)
    run = recurrence if kernel == "recurrence" else delta

    def call(**options: Any) -> tuple[Tensor, Tensor | None]:
        return run(*tokens, decay, state=state, causal=True, **options)

    compare(call, [*tokens, state, *([] if decay is None else [decay])], device)


def test_bonus(device: torch.device) -> None:
    tokens, decay, state = draw(device, "recurrence", "channel", torch.float32)
    bonus = torch.randn(H, K, device=device, requires_grad=True)

    def call(**options: Any) -> tuple[Tensor, Tensor | None]:
        return recurrence(*tokens, decay, state=state, causal=True, bonus=bonus, **options)

    compare(call, [*tokens, state, bonus], device)


@pytest.mark.parametrize("undecayed", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_diagonal_plus_low_rank(second: bool, undecayed: bool, device: torch.device) -> None:
    (q, k, v, strength), decay, state = draw(device, "delta", "channel", torch.bfloat16)
    erase, k2 = (functional.normalize(torch.randn_like(k), dim=-1).requires_grad_() for _ in range(2))

    def call(**options: Any) -> tuple[Tensor, Tensor | None]:
        special = {"erase": erase, "erase_undecayed": undecayed, "write": (k2, v) if second else None}
        return delta(q, k, None if second else v, strength, decay, state=state, causal=True, **special, **options)

    compare(call, [q, k, v, strength, state, erase, *([k2] if second else [])], device)


@pytest.mark.parametrize("mixer", ["gla", "gated_delta_net"])
@pytest.mark.parametrize("values", [{}, {"gradient_checkpointing": True}])
def test_a_run(
    mixer: str, values: dict[str, Any], text: Path, cache: Path, tmp_path: Path, device: torch.device
) -> None:
    settings = {"mixer": mixer, "device": device.type, "precision": "bf16", **values}
    ours = train(small.run(text, **settings), tmp_path / "torch", cache)
    theirs = train(small.run(text, **settings, kernels="fla"), tmp_path / "fla", cache)
    assert theirs["scores"]["test"]["bits_per_byte"] == pytest.approx(ours["scores"]["test"]["bits_per_byte"], abs=0.03)
    assert theirs["flops"] == ours["flops"]
