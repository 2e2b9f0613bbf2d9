"""What the kernels' tests share: segments with padding anywhere, cuts, and comparisons with gradients."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from paribus.nn.segments import Past, resolve
from paribus.nn.state import State, state_tensors

Run = Callable[..., tuple[Tensor, State]]
"""run(x, ..., rows=, state=) of one kernel, every tensor argument with tokens on dimension 1."""


def random_segments(batch: int, length: int, seed: int = 0) -> Tensor:
    """[B, T] ids of several segments with padding left, right and inside; row 0 has no padding."""
    draw = random.Random(seed)
    segments = torch.ones(batch, length, dtype=torch.long)
    for b in range(1, batch):
        segment, left, right = draw.randint(1, 3), draw.randint(0, length // 3), draw.randint(0, length // 3)
        for t in range(length):
            segment += draw.random() < 0.08
            padding = t < left or t >= length - right or draw.random() < 0.15
            segments[b, t] = 0 if padding else segment
    return segments


def random_cuts(length: int, seed: int = 0) -> list[int]:
    """Ends of up to four pieces of a sequence, the last being its own."""
    inner = random.Random(seed).sample(range(1, length), min(3, length - 1)) if length > 1 else []
    return [*sorted(inner), length]


def in_pieces(run: Run, inputs: Sequence[Tensor], segments: Tensor | None, cuts: list[int]) -> tuple[Tensor, State]:
    """The kernel on one piece after another, its state handed on."""
    past: Past | None = None
    state, outputs, start = None, [], 0
    for end in cuts:
        piece = [tensor[:, start:end] for tensor in inputs]
        rows = resolve(piece[0], None if segments is None else segments[:, start:end], past)
        y, state = run(*piece, rows=rows, state=state)
        outputs.append(y)
        past, start = rows.after(), end
    return torch.cat(outputs, 1), state


def real(y: Tensor, segments: Tensor | None) -> Tensor:
    """y [B, T, ...] with padding set to zero, where answers are nobody's business."""
    return y if segments is None else y * (segments != 0).view(*segments.shape, *[1] * (y.ndim - 2))


def close(actual: Any, expected: Any, tolerance: float) -> None:
    """Every tensor of two nests agrees, relative to the largest expected entry."""
    pairs = list(zip(state_tensors(actual), state_tensors(expected), strict=True))
    assert pairs
    for one, other in pairs:
        assert one.shape == other.shape
        scale = max(1.0, other.abs().max().item() if other.numel() else 1.0)
        torch.testing.assert_close(one, other.to(one.dtype), rtol=0, atol=tolerance * scale)


def with_gradients(
    run: Run, inputs: Sequence[Tensor], others: Sequence[Tensor], segments: Tensor | None, seed: int = 0
) -> list[Tensor]:
    """Answers and the gradients of a random weighting of them, for all `inputs` and `others` (weights)."""
    rows = resolve(inputs[0], segments, None)
    y, state = run(*inputs, rows=rows, state=None)
    answers = [real(y, segments), *state_tensors(state)]
    draw = torch.Generator().manual_seed(seed)
    weights = [torch.randn(a.shape, generator=draw, dtype=torch.float64).to(a) for a in answers]
    loss = sum((a * w).sum() for a, w in zip(answers, weights, strict=True))
    assert isinstance(loss, Tensor)
    gradients = torch.autograd.grad(loss, [*inputs, *others], allow_unused=True, materialize_grads=True)
    return [*(a.detach() for a in answers), *gradients]
