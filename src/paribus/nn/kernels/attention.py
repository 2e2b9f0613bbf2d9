"""Attention: o[t] = Σ_s w[t, s] v[s] over the tokens that t may see, w a normalised x[t, s] = scale · q[t]·k[s] + b.

Which those are: the same segment, at or before t when causal, and fewer than `window` true positions away.
The bias b falls with distance: −slope · |t − s| in true positions (ALiBi), −|F[t] − F[s]| with F the running sum of
log-forget gates along the segment (FoX); or it is a learned number for each t − s; or a sum of these. What else a query
may look at are slots, which are no positions: a sink with a learned score and nothing to give, a learned key or value.
How scores become weights is told in `normalisers`. Softmax, with or without slots, goes through torch's fused
attention, but a bias with a gradient of its own is added to a few queries' scores at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..segments import Rows
from ..settings import nearest
from .attention_blocks import Distances
from .attention_forms import SOFTMAX, Problem, Slots, fast, reference
from .normalisers import NORMALISERS

Expand = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_ALGORITHMS = {"fast": fast, "reference": reference}
_KNOWN = (*SOFTMAX, *NORMALISERS)


class AttentionHistory(NamedTuple):
    """Keys and values of the past, with what decides who may see them and how far away they are."""

    keys: Tensor
    """[B, S, G, K]."""
    values: Tensor
    """[B, S, G, V]."""
    ids: Tensor
    """[B, S] segment ids, 0 = padding."""
    positions: Tensor
    """[B, S] true positions in the segment."""
    forgotten: Tensor | None = None
    """[B, S, H]: F, at padding that of the token before, in float32 or wider; None without a forget gate."""


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
    normaliser: str = "softmax",
    log_forget: Tensor | None = None,
    slopes: Tensor | None = None,
    distance_bias: Tensor | None = None,
    sink: Tensor | None = None,
    slot: tuple[Tensor | None, Tensor | None] | None = None,
    expand: Expand | None = None,
    algorithm: str = "fast",
) -> tuple[Tensor, AttentionHistory]:
    """Attend from q to the history followed by k, v.

    Args:
        q: [B, T, H, K].
        k: [B, T, G, K]; each of the G heads serves H/G consecutive query heads.
        v: [B, T, G, V]; here G may be another divisor of H.
        window: how many true positions, the token's own included, are seen to each side; 0 is no limit.
        normaliser: "softmax", "softmax_one", "sigmoid", "relu", "softpick" or "stick_breaking".
        log_forget: [B, T, H] logarithms of forget gates, at most 0; F is kept in float32 or wider.
        slopes: [H], not negative: ALiBi's penalty for each true position.
        distance_bias: what is added where t − s true positions are 0 … R, [H, R + 1]; or, with two directions, −R … R,
            [H, 2 R + 1]. Tokens farther away get what the farthest do.
        sink: [H], the score of a slot whose value is zero.
        slot: a learned key [G, K] and value [G, V] of one more slot; None in place of either is zeros. Its score has
            no bias. With "stick_breaking" there is no key: the value is what the rest of the stick is spent on.
        expand: makes keys [B, S, G, K] and values [B, S, G, V] of what is kept in their places; None: they are kept.
        algorithm: "fast" or "reference" (the definition in float64, one query after another).

    Returns:
        o [B, T, H, V] and the history after these tokens, cut to what a window can still reach.

    Raises:
        ValueError: unknown algorithm or normaliser.
    """
    _check(algorithm, normaliser)
    history = AttentionHistory(k, v, rows.ids, rows.positions, _forgotten(log_forget, rows, state))
    if state is not None:
        history = _joined(state, history)
    allowed = _allowed(rows, history, causal, window) if _needs_mask(rows, state, causal, window, k.shape[1]) else None
    kept = history[:2] if expand is None else expand(history.keys, history.values)
    keys, values = (_for_each_query(t, q.shape[2]) for t in kept)
    slots = _slots(q, values.shape[-1], sink, slot)
    levels, learned = _levels(history, slopes), log_forget is not None
    distances = None if distance_bias is None else _distances(distance_bias, rows, history, causal)
    biases = (levels, learned, distance_bias, distances)
    problem = Problem(q, keys, values, allowed, *biases, slots, causal, scale, normaliser)
    o = _ALGORITHMS[algorithm](problem)
    return o, _reachable(history, window) if window else history


def _check(algorithm: str, normaliser: str) -> None:
    for name, known, what in ((algorithm, _ALGORITHMS, "algorithm"), (normaliser, _KNOWN, "normaliser")):
        if name not in known:
            raise ValueError(f"unknown attention {what} '{name}'; {nearest(name, known)}")


def _joined(old: AttentionHistory, new: AttentionHistory) -> AttentionHistory:
    keys, values, ids, positions = (torch.cat(pair, 1) for pair in zip(old[:4], new[:4], strict=True))
    if old.forgotten is None or new.forgotten is None:
        return AttentionHistory(keys, values, ids, positions)
    return AttentionHistory(keys, values, ids, positions, torch.cat([old.forgotten, new.forgotten], 1))


def _for_each_query(t: Tensor, heads: int) -> Tensor:
    """[..., G, K] -> [..., H, K]."""
    return t if t.shape[-2] == heads else t.repeat_interleave(heads // t.shape[-2], -2)


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

    keys, values, ids, positions = (take(t) for t in history[:4])
    return AttentionHistory(
        keys, values, ids, positions, None if history.forgotten is None else take(history.forgotten)
    )


def _forgotten(log_forget: Tensor | None, rows: Rows, state: AttentionHistory | None) -> Tensor | None:
    """F [B, T, H]: the sum from the segment's first token on; padding adds nothing."""
    if log_forget is None:
        return None
    steps = log_forget.to(torch.promote_types(log_forget.dtype, torch.float32))
    if rows.valid is not None:
        steps = steps.masked_fill(~rows.valid[..., None], 0)
    total = steps.cumsum(1)
    if state is not None:
        assert state.forgotten is not None, "the history was made with a forget gate"
        total = total + state.forgotten[:, -1:]
    if rows.starts is None:
        return total
    T = steps.shape[1]
    began = torch.where(rows.starts, torch.arange(T, device=steps.device), -1).cummax(1).values[..., None]  # B T 1
    before = (total - steps).gather(1, began.clamp(min=0).expand_as(total))
    return total - before.masked_fill(began < 0, 0)


def _levels(history: AttentionHistory, slopes: Tensor | None) -> Tensor | None:
    """[B or 1, S, H], falling along a segment as much as the bias does."""
    if slopes is None:
        return history.forgotten
    positions = _once(history.positions)
    compute = torch.promote_types(slopes.dtype, torch.float32)
    levels = -positions[..., None] * slopes.to(compute)
    return levels if history.forgotten is None else levels + history.forgotten


def _once(positions: Tensor) -> Tensor:
    """[B, T], or [1, T] where every row stands at the same positions."""
    return positions[:1] if positions.stride(0) == 0 else positions


def _distances(bias: Tensor, rows: Rows, history: AttentionHistory, causal: bool) -> Distances:
    lowest = 0 if causal else -(bias.shape[1] // 2)
    return Distances(_once(rows.positions), _once(history.positions), lowest, lowest + bias.shape[1] - 1)


def _slots(q: Tensor, V: int, sink: Tensor | None, slot: tuple[Tensor | None, Tensor | None] | None) -> Slots | None:
    H, K = q.shape[2:]
    found: list[tuple[Tensor | None, Tensor | None, Tensor | None]] = []
    if sink is not None:
        found.append((None, None, sink))
    if slot is not None:
        key, value = (None if t is None else _for_each_query(t, H) for t in slot)
        found.append((key, value, None))
    if not found:
        return None
    keys, values, scores = (
        torch.stack([q.new_zeros(shape) if t is None else t.to(q.dtype) for t in column])
        for column, shape in zip(zip(*found, strict=True), ((H, K), (H, V), (H,)), strict=True)
    )
    return Slots(keys, values, None if sink is None else scores)
