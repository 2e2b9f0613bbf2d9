"""Ways to compute one attention: torch's fused form, blocks of queries, and the definition in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .attention_blocks import Distances, Plan, attend_in_blocks
from .normalisers import Seen, reference_weights

SOFTMAX = ("softmax", "softmax_one")
"""Normalisers that torch's fused attention computes, the 1 of the second one as a slot with score and value zero."""
_LINE = 8
"""Numbers to which the width of heads is rounded up when they need to be padded anyway."""


class Slots(NamedTuple):
    """What every query sees beside the tokens, n of them."""

    keys: Tensor
    """[n, H, K]."""
    values: Tensor
    """[n, H, V]."""
    scores: Tensor | None
    """[n, H], added to those of the keys; None is zeros."""

    def and_zero(self) -> Slots:
        """One more slot, of zeros."""
        scores = None if self.scores is None else functional.pad(self.scores, (0, 0, 0, 1))
        keys, values = (functional.pad(t, (0, 0, 0, 0, 0, 1)) for t in (self.keys, self.values))
        return Slots(keys, values, scores)

    def to(self, dtype: torch.dtype) -> Slots:
        """The same slots in another dtype."""
        return Slots(self.keys.to(dtype), self.values.to(dtype), None if self.scores is None else self.scores.to(dtype))


class Problem(NamedTuple):
    """One call, its history joined and its heads repeated."""

    q: Tensor
    """[B, T, H, K]."""
    k: Tensor
    """[B, S, H, K]."""
    v: Tensor
    """[B, S, H, V]."""
    allowed: Tensor | None
    """[B, 1, T, S] bool; None: everything up to the query (causal), or everything."""
    levels: Tensor | None
    """[B or 1, S, H], falling along a segment; the bias is the fall from the earlier to the later, at most 0."""
    learned: bool
    """Whether levels have a gradient, which torch's fused attention does not give on a CPU."""
    bias: Tensor | None
    """[H, N], a number for each distance from the lowest of `distances` to the highest."""
    distances: Distances | None
    slots: Slots | None
    causal: bool
    scale: float
    normaliser: str


def fast(p: Problem) -> Tensor:
    """In the heads' own dtype; in float32 or wider where scores are biased or torch has nothing fused for them."""
    softmax = p.normaliser in SOFTMAX
    if p.normaliser == "softmax_one":
        q, v = p.q, p.v
        none = Slots(q.new_zeros(0, *q.shape[2:]), v.new_zeros(0, *v.shape[2:]), None)
        p = p._replace(slots=(p.slots or none).and_zero(), normaliser="softmax")
    if p.levels is None and p.bias is None and softmax:
        return _by_sdpa(p)
    wide = torch.promote_types(p.q.dtype, torch.float32)
    levels, bias = (None if t is None else t.to(wide) for t in (p.levels, p.bias))
    slots = None if p.slots is None else p.slots.to(wide)
    q, k, v = (t.to(wide) for t in p[:3])
    with torch.autocast(q.device.type, enabled=False):
        fused = softmax and bias is None and (p.causal or not p.learned)
        compute = _by_sdpa if fused else _by_blocks
        return compute(p._replace(q=q, k=k, v=v, levels=levels, bias=bias, slots=slots)).to(p.q.dtype)


def _by_sdpa(p: Problem) -> Tensor:
    """torch's fused attention."""
    mask, T = p.allowed, p.q.shape[1]
    n = 0 if p.slots is None else len(p.slots.values)
    is_causal = p.causal and mask is None and T > 1
    q, k, v, scale = _with_columns(p, p.levels if p.causal else None)
    if p.levels is not None and not p.causal:  # the fall to both sides is no product of a query's and a key's part
        levels = p.levels.transpose(1, 2)
        bias = -(levels[:, :, :, None] - levels[:, :, None, :]).abs()
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    if is_causal:  # queries that nobody reads keep the matrix square, as torch's causal mask has it
        q = functional.pad(q, (0, 0, 0, 0, n, 0)) if n else q
    elif mask is not None and n:
        mask = functional.pad(mask, (n, 0), value=mask.dtype == torch.bool)
    q, k, v = (t.transpose(1, 2) for t in _equally_wide(q, k, v))  # B H T K
    o = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
    return o.transpose(1, 2)[:, -T:, :, : p.v.shape[3]]


def _by_blocks(p: Problem) -> Tensor:
    """A few queries at a time."""
    n = 0 if p.slots is None else len(p.slots.values)
    plan = Plan(p.normaliser, n, p.causal, p.allowed, p.q.shape[1], p.k.shape[1], p.distances)
    q, k, v, scale = _with_columns(p, p.levels if p.causal else None)
    levels = None if p.causal or p.levels is None else p.levels.expand(len(q), -1, -1).transpose(1, 2)
    q, k, v = (t.transpose(1, 2) for t in (q * scale, k, v))
    return attend_in_blocks(q, k, v, levels, p.bias, plan).transpose(1, 2)


def _with_columns(p: Problem, levels: Tensor | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """q, k and v, slots before the tokens and causal biases in more channels, and the scale that is left to apply."""
    if levels is None and p.slots is None:
        return p.q, p.k, p.v, p.scale
    q, k = _with_channels(p.q * p.scale, p.k, levels, p.slots)
    v = p.v if p.slots is None else torch.cat([p.slots.values.expand(len(p.v), -1, -1, -1), p.v], 1)
    return q, k, v, 1.0


def _with_channels(q: Tensor, k: Tensor, levels: Tensor | None, slots: Slots | None) -> tuple[Tensor, Tensor]:
    """Queries and keys, slots first, whose plain products are the biased scores.

    A causal bias is level[t] − level[s], the product of (level[t], 1) and (1, −level[s]), and a slot's own score is
    that of (…, 1) and (0, score): torch needs no matrix of biases, which on a CPU it could not differentiate fast.
    """
    column = k.new_zeros(*k.shape[:3], 1)
    if levels is not None:
        levels = levels.expand(len(k), -1, -1)[..., None]
        q = torch.cat([q, levels[:, -q.shape[1] :], torch.ones_like(q[..., :1])], -1)
        k = torch.cat([k, column + 1, -levels], -1)
    elif slots is not None and slots.scores is not None:
        q, k = torch.cat([q, torch.ones_like(q[..., :1])], -1), torch.cat([k, column], -1)
    if slots is None:
        return q, k
    scores = slots.keys.new_zeros(slots.keys.shape[:2]) if slots.scores is None else slots.scores
    channels = k.shape[3] - slots.keys.shape[2]
    keys = torch.cat([slots.keys, *[scores[..., None] * (i == channels - 1) for i in range(channels)]], -1)
    return q, torch.cat([keys.expand(len(k), -1, -1, -1), k], 1)


def _equally_wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Padded with zero channels to one width, without which torch's attention on a CPU is not the fused one."""
    widths = {t.shape[-1] for t in tensors}
    if len(widths) == 1:
        return tensors
    width = -(-max(widths) // _LINE) * _LINE
    return tuple(functional.pad(t, (0, width - t.shape[-1])) for t in tensors)


def _everybody(p: Problem) -> Tensor:
    """[B or 1, 1, T, S] bool: what each query sees, spelled out."""
    if p.allowed is not None:
        return p.allowed
    T, S = p.q.shape[1], p.k.shape[1]
    seen = torch.ones(1, 1, T, S, dtype=torch.bool, device=p.q.device)
    return seen.tril(S - T) if p.causal else seen


def reference(p: Problem) -> Tensor:
    """The definition in float64, one query after another."""
    q, k, v = (t.double() for t in p[:3])
    T, S, n, outputs = q.shape[1], k.shape[1], 0, []
    seen = _everybody(p)
    if p.slots is not None:
        n = len(p.slots.values)
        slots = (p.slots.keys, p.slots.values)
        k, v = (torch.cat([s.double().expand(len(q), -1, -1, -1), t], 1) for s, t in zip(slots, (k, v), strict=True))
    seen = functional.pad(seen, (n, 0), value=True)
    for t in range(T):
        scores = p.scale * torch.einsum("bhk,bshk->bhs", q[:, t], k)
        if p.levels is not None:
            own = S - T + t
            fall = (p.levels[:, own, None] - p.levels).double()
            fall = torch.cat([fall[:, : own + 1], -fall[:, own + 1 :]], 1).transpose(1, 2)  # B H S
            scores = scores + functional.pad(fall, (n, 0))
        if p.bias is not None and p.distances is not None:
            mine = p.bias.double()[:, p.distances.places(slice(t, t + 1), slice(S), slice(None))[:, 0]]  # H B S
            scores = scores + functional.pad(mine.transpose(0, 1), (n, 0))
        if p.slots is not None and p.slots.scores is not None:
            scores = scores + functional.pad(p.slots.scores.double().T, (0, S))
        weights = reference_weights(p.normaliser, scores, Seen(seen[:, :, t], n, p.causal, S - T + t))
        outputs.append(torch.einsum("bhs,bshv->bhv", weights, v))
    return torch.stack(outputs, 1).to(p.q.dtype)
