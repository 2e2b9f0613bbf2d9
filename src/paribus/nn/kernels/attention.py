"""Softmax attention: o[t] = Σ_s softmax_s(scale · q[t]·k[s]) v[s] over the tokens that t may see.

Which those are: the same segment, at or before t when causal, and fewer than `window` true positions away.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..segments import Rows
from ..settings import nearest


class AttentionHistory(NamedTuple):
    """Keys and values of the past, with what decides who may see them."""

    keys: Tensor
    """[B, S, G, K]."""
    values: Tensor
    """[B, S, G, V]."""
    ids: Tensor
    """[B, S] segment ids, 0 = padding."""
    positions: Tensor
    """[B, S] true positions in the segment."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rows: Rows,
    state: AttentionHistory | None,
    causal: bool,
    scale: float,
    window: int = 0,
    algorithm: str = "sdpa",
) -> tuple[Tensor, AttentionHistory]:
    """Attend from q to the history followed by k, v.

    Args:
        q: [B, T, H, K].
        k: [B, T, G, K]; each of the G heads serves H/G consecutive query heads.
        v: [B, T, G, V].
        window: how many true positions, the token's own included, are seen to each side; 0 is no limit.
        algorithm: "sdpa" (torch's fused attention) or "reference" (a float64 softmax for each query, in a loop).

    Returns:
        o [B, T, H, V] and the history after these tokens, cut to what a window can still reach.

    Raises:
        ValueError: unknown algorithm.
    """
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"unknown attention algorithm '{algorithm}'; {nearest(algorithm, _ALGORITHMS)}")
    history = AttentionHistory(k, v, rows.ids, rows.positions)
    if state is not None:
        history = AttentionHistory(*(torch.cat(pair, 1) for pair in zip(state, history, strict=True)))
    allowed = _allowed(rows, history, causal, window) if _needs_mask(rows, state, causal, window, k.shape[1]) else None
    groups = q.shape[2] // k.shape[2]
    keys, values = (t.repeat_interleave(groups, 2) if groups > 1 else t for t in history[:2])
    o = _ALGORITHMS[algorithm](q, keys, values, allowed, causal and allowed is None and k.shape[1] > 1, scale)
    return o, _reachable(history, window) if window else history


def _needs_mask(rows: Rows, state: AttentionHistory | None, causal: bool, window: int, T: int) -> bool:
    if not rows.plain or window:
        return True
    if state is None:
        return False
    return T > 1 or not causal or bool((state.ids != rows.ids[:, :1]).any())


def _allowed(rows: Rows, history: AttentionHistory, causal: bool, window: int) -> Tensor:
    """[B, 1, T, S] bool; every token sees itself, padding sees padding, so no row is empty."""
    T, S = rows.ids.shape[1], history.ids.shape[1]
    allowed = rows.ids[:, :, None] == history.ids[:, None, :]
    if causal:
        allowed = allowed & torch.ones(T, S, dtype=torch.bool, device=rows.ids.device).tril(S - T)
    if window:
        distance = (rows.positions[:, :, None] - history.positions[:, None, :]).abs()
        inside = (distance < window) | (rows.ids == 0)[:, :, None]
        allowed = allowed & inside
    return allowed[:, None]


def _reachable(history: AttentionHistory, window: int) -> AttentionHistory:
    """The last `window` - 1 real tokens of each row (at least one entry): all that a later token can see."""
    keep = max(window - 1, 1)
    if history.ids.shape[1] <= keep:
        return history
    order = (history.ids != 0).long().argsort(dim=1, stable=True)[:, -keep:]  # B keep; padding sorts to the front

    def take(t: Tensor) -> Tensor:
        return t.gather(1, order.reshape(*order.shape, *[1] * (t.dim() - 2)).expand(-1, -1, *t.shape[2:]))

    return AttentionHistory(*(take(t) for t in history))


def _sdpa(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, is_causal: bool, scale: float) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # B H T K
    o = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=is_causal, scale=scale)
    return o.transpose(1, 2)


def _reference(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, is_causal: bool, scale: float) -> Tensor:
    dtype, (T, S) = q.dtype, (q.shape[1], k.shape[1])
    q, k, v = (t.double() for t in (q, k, v))
    outputs = []
    for t in range(T):
        scores = scale * torch.einsum("bhk,bshk->bhs", q[:, t], k)
        if allowed is not None:
            scores = scores.masked_fill(~allowed[:, :, t], -torch.inf)
        elif is_causal:
            scores = scores.masked_fill(torch.arange(S, device=q.device) > t, -torch.inf)
        outputs.append(torch.einsum("bhs,bshv->bhv", scores.softmax(-1), v))
    return torch.stack(outputs, 1).to(dtype)


_ALGORITHMS = {"sdpa": _sdpa, "reference": _reference}
