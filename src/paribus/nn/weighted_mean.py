"""Weighted means of values, which is what linear attention with a denominator computes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .kernels.recurrence import recurrence
from .segments import Rows

EPSILON = 1e-6  # of the denominator, which is zero where no key has anything in common with the query


def weighted_mean(
    q: Tensor, k: Tensor, v: Tensor, *, rows: Rows, state: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor | None]:
    """o[t] = Σ_s (q[t] · k[s]) v[s] / Σ_s q[t] · k[s] over s ≤ t, or over all s; numerator and denominator at once.

    Args:
        q: [B, T, H, F] features, F of any width; no q · k may be negative.
        k: [B, T, H, F].
        v: [B, T, H, V].
        state: [B, H, F, V + 1]: Σ k [v, 1]ᵀ before the first token; None is zero.

    Returns:
        o [B, T, H, V] in the dtype of `v`, and the state after the last token (None when two-directional).
    """
    q = q.to(torch.promote_types(q.dtype, torch.float32))  # the sums are divided before they are rounded
    sums, state = recurrence(q, k, functional.pad(v, (0, 1), value=1.0), None, rows=rows, state=state, causal=causal)
    return (sums[..., :-1] / (sums[..., -1:] + EPSILON)).to(v.dtype), state
