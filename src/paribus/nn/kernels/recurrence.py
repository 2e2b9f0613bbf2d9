"""Gated linear recurrence, the kernel of linear attention and its gated kin.

    S[t] = Diag(a[t]) S[t-1] + k[t] v[t]ᵀ          o[t] = S[t]ᵀ q[t]

Two-directional: that, plus the same from the end read before its own write, so that the diagonal counts once; with
scalar decay o = (Q Kᵀ ⊙ exp(-|G[t] - G[s]|)) V for G the running sum of log a.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..segments import Rows
from .chunks import Form, Gates, chunk_length, merge, run_form, split, weigh


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    algorithm: str = "chunked",
) -> tuple[Tensor, Tensor | None]:
    """Write k vᵀ into a decaying state, token by token, and read it with q.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        log_decay: log a ≤ 0: None, [H] constant, [B, T, H] scalar or [B, T, H, K] per channel.
        state: [B, H, K, V] before the first token; None is zero.
        algorithm: "chunked", or "reference": one token after the other in float64.

    Returns:
        o [B, T, H, V], and the state after the last token in float32 or wider (None when two-directional).

    Raises:
        ValueError: unknown algorithm.
    """
    return run_form(_FORMS, algorithm, q, [k, v], log_decay, rows=rows, state=state, causal=causal)


def _steps(q: Tensor, writes: list[Tensor], gates: Gates, state: Tensor, strict: bool) -> tuple[Tensor, Tensor]:
    """One token after the other; `strict` reads before the token's own write."""
    outputs = []
    tokens = (x.unbind(1) for x in (q, *writes))
    for q_t, k_t, v_t, gate in zip(*tokens, gates.steps(q.shape[1]), strict=True):
        state = gate(state)
        written = state + k_t[..., None] * v_t[..., None, :]
        outputs.append((q_t[..., None, :] @ (state if strict else written))[..., 0, :])
        state = written
    return torch.stack(outputs, 1), state


def _chunked(q: Tensor, writes: list[Tensor], gates: Gates, state: Tensor, strict: bool) -> tuple[Tensor, Tensor]:
    """Quadratic inside chunks, linear between them."""
    T, C = q.shape[1], chunk_length(q.shape[1])
    q, k, v = (split(x, C) for x in (q, *writes))
    weights = weigh(q, k, gates)
    pairs = weights.pairs.tril(-1) if strict else weights.pairs
    before, state = _ChunkStates.apply(weights.write.mT @ v, weights.keep, state)
    o = torch.baddbmm(*(x.flatten(0, 2) for x in (pairs @ v, weights.read, before)))
    return merge(o.unflatten(0, q.shape[:3]), T), state


class _ChunkStates(torch.autograd.Function):
    """The states before each chunk, [B, H, N, K, V], and the last: S[n+1] = keep[n] ⊙ S[n] + added[n]."""

    @staticmethod
    def forward(ctx: Any, added: Tensor, keep: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        before, last = torch.empty_like(added), torch.empty_like(state)
        befores = before.unbind(2)
        befores[0].copy_(state)
        for *step, after in zip(added.unbind(2), keep.unbind(2), befores, (*befores[1:], last), strict=True):
            torch.addcmul(*step, out=after)
        ctx.save_for_backward(keep, before)
        return before, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_before: Tensor, d_last: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        keep, before = ctx.saved_tensors
        d_added, d_state = torch.empty_like(d_before), torch.empty_like(d_last)
        d_addeds = d_added.unbind(2)
        d_addeds[-1].copy_(d_last)
        steps = zip(d_before.unbind(2), keep.unbind(2), d_addeds, (d_state, *d_addeds[:-1]), strict=True)
        for *step, earlier in reversed(list(steps)):
            torch.addcmul(*step, out=earlier)
        d_keep = (d_added * before).sum_to_size(keep.shape) if ctx.needs_input_grad[1] else None
        return d_added, d_keep, d_state


_FORMS: dict[str, Form] = {"chunked": _chunked, "reference": _steps}
