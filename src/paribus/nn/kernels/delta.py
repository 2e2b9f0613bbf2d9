"""Gated delta rule, the kernel of DeltaNet and its gated kin: decay, erase what the key holds, write the value.

    S[t] = (I - β[t] k[t] k[t]ᵀ) Diag(a[t]) S[t-1] + β[t] k[t] v[t]ᵀ          o[t] = S[t]ᵀ q[t]

That is S[t] = Diag(a[t]) S[t-1] + k[t] u[t]ᵀ for pseudo-values u[t] = β[t] (v[t] - (Diag(a[t]) S[t-1])ᵀ k[t]), which
inside a chunk solve one unit lower triangular system (Yang et al. 2024, arXiv:2406.06484 and arXiv:2412.06464).
Two-directional: that, plus the same from the end read before its own write, so that the diagonal counts once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..segments import Rows
from .chunks import Form, Gates, chunk_length, full_precision, merge, run_form, split, weigh


def delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    write_strength: Tensor,
    log_decay: Tensor | None,
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    algorithm: str = "chunked",
) -> tuple[Tensor, Tensor | None]:
    """Correct a decaying state so that the key k holds the value v, token by token, and read it with q.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K], of length at most 1 if the state is to stay bounded.
        v: [B, T, H, V].
        write_strength: [B, T, H] β; in (0, 1) an interpolation of old and new value, up to 2 a reflection.
        log_decay: log a ≤ 0: None, [H] constant, [B, T, H] scalar or [B, T, H, K] per channel.
        state: [B, H, K, V] before the first token; None is zero.
        algorithm: "chunked", or "reference": one token after the other in float64.

    Returns:
        o [B, T, H, V], and the state after the last token in float32 or wider (None when two-directional).

    Raises:
        ValueError: unknown algorithm.
    """
    return run_form(
        _FORMS,
        algorithm,
        q,
        [k, v, write_strength[..., None]],
        log_decay,
        rows=rows,
        state=state,
        causal=causal,
    )


def _steps(q: Tensor, writes: list[Tensor], gates: Gates, state: Tensor, strict: bool) -> tuple[Tensor, Tensor]:
    """One token after the other; `strict` reads before the token's own write."""
    outputs = []
    tokens = (x.unbind(1) for x in (q, *writes))
    for q_t, k_t, v_t, strength, gate in zip(*tokens, gates.steps(q.shape[1]), strict=True):
        state = gate(state)
        held = (k_t[..., None, :] @ state)[..., 0, :]  # B H V
        written = state + k_t[..., None] * (strength * (v_t - held))[..., None, :]
        outputs.append((q_t[..., None, :] @ (state if strict else written))[..., 0, :])
        state = written
    return torch.stack(outputs, 1), state


def _chunked(q: Tensor, writes: list[Tensor], gates: Gates, state: Tensor, strict: bool) -> tuple[Tensor, Tensor]:
    """A triangular system inside chunks; between them S[n+1] = keep ⊙ S[n] + writeᵀ (target - held S[n])."""
    T, C = q.shape[1], chunk_length(q.shape[1])
    q, k, v, strength = (split(x, C) for x in (q, *writes))
    weights = weigh(torch.stack([q, k]), k, gates)
    (pairs, overlaps), (read, hold) = weights.pairs, weights.read
    solve = _UnitInverse.apply(strength * overlaps) * strength.mT
    target, held = solve @ v, solve @ hold
    flat = (x.flatten(0, 1) for x in (target, held, weights.write, weights.keep, state))
    before, values, after = _ChunkStates.apply(*flat)
    pairs = (pairs.tril(-1) if strict else pairs).flatten(0, 1)
    o = torch.baddbmm(*(x.flatten(0, -3) for x in (pairs @ values, read, before)))
    return merge(o.unflatten(0, q.shape[:3]), T), after.unflatten(0, q.shape[:2])


class _UnitInverse(torch.autograd.Function):
    """(I + L)⁻¹ for L the part of [..., C, C] strictly below the diagonal."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
        inverse = torch.linalg.solve_triangular(matrix, identity, upper=False, unitriangular=True)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_inverse: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        with full_precision(inverse):
            return (inverse.mT @ d_inverse @ inverse.mT).tril_(-1).neg_()


class _ChunkStates(torch.autograd.Function):
    """The states before each of N chunks, the pseudo-values and the last state; G = B H.

    values[n] = target[n] - held[n] S[n]          S[n+1] = keep[n] ⊙ S[n] + write[n]ᵀ values[n]

    target, values [G, N, C, V]; held, write [G, N, C, K]; keep [G, N, 1 or K, 1]; states [G, (N,) K, V].
    """

    @staticmethod
    def forward(
        ctx: Any, target: Tensor, held: Tensor, write: Tensor, keep: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        before, values = [], []
        for n in range(target.shape[1]):
            before.append(state)
            values.append(torch.baddbmm(target[:, n], held[:, n], state, alpha=-1))
            state = torch.baddbmm(keep[:, n] * state, write[:, n].mT, values[-1])
        ctx.save_for_backward(held, write, keep, *(stacked := (torch.stack(before, 1), torch.stack(values, 1))))
        return *stacked, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_before: Tensor, d_values: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        held, write, keep, before, values = ctx.saved_tensors
        targets, afters = [], []
        with full_precision(held):
            for n in reversed(range(held.shape[1])):
                afters.append(d_state)
                targets.append(torch.baddbmm(d_values[:, n], write[:, n], d_state))
                kept = torch.addcmul(d_before[:, n], keep[:, n], d_state)
                d_state = torch.baddbmm(kept, held[:, n].mT, targets[-1], alpha=-1)
            d_after, d_target = torch.stack(afters[::-1], 1), torch.stack(targets[::-1], 1)
            d_held, d_write = (d_target @ before.mT).neg_(), values @ d_after.mT
        d_keep = (d_after * before).sum_to_size(keep.shape) if ctx.needs_input_grad[3] else None
        return d_target, d_held, d_write, d_keep, d_state


_FORMS: dict[str, Form] = {"chunked": _chunked, "reference": _steps}
