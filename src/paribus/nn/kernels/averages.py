"""Averages over tokens with positive weights, channel by channel: what attention becomes when scores do not compare.

    y[t] = Σ_s exp(k[s] + w[t, s]) v[s] / Σ_s exp(k[s] + w[t, s])

over the past and the present, or the whole segment. Without the table w that is a recurrence with a running maximum.
With it, everything before a block of tokens shares one reference for each channel, the largest key so far, so that
exponentials never overflow and the products are of matrices; inside the block each pair has its own. A row of w may
spread over some eighty; what a token reads beyond that, it takes for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..segments import Rows
from ..settings import nearest
from .alignment import align, each_segment
from .chunks import full_precision
from .scan import scan
from .tokens import check_length

BLOCK = 32
"""Tokens whose pairs have references of their own."""
ALGORITHMS = ("fast", "reference")


class AverageState(NamedTuple):
    """The sums of the current segment so far, divided by exp(peak)."""

    sums: Tensor
    """[B, 2 E]: of weighted values, then of weights."""
    peak: Tensor
    """[B, E]: the largest key; -inf before the first token."""


def running_average(
    k: Tensor,
    v: Tensor,
    *,
    rows: Rows,
    state: AverageState | None,
    causal: bool,
    algorithm: str = "fast",
) -> tuple[Tensor, AverageState | None]:
    """The average without a table, of any length.

    Args:
        k: [B, T, E].
        v: [B, T, E].
        rows: segments and padding of the tokens.
        state: of the current segment so far; None is no past.
        causal: read the past and the present only.
        algorithm: "fast", or "reference", token by token in float64.

    Returns:
        y [B, T, E], anything finite at padding, and the state after these tokens (None unless causal).

    Raises:
        ValueError: unknown algorithm.
    """
    _check(algorithm)
    wide = torch.promote_types(k.dtype, torch.float64 if algorithm == "reference" else torch.float32)
    keep = torch.promote_types(k.dtype, torch.float32)
    with full_precision(k):
        if not causal:
            return _whole_segments(k.to(wide), v.to(wide), None, rows).to(k.dtype), None
        run = _step_by_step if algorithm == "reference" else _running
        y, state = run(k.to(wide), v.to(wide), rows, state)
    return y.to(k.dtype), AverageState(*(part.to(keep) for part in state))


def table_average(
    k: Tensor,
    v: Tensor,
    table: Tensor,
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    algorithm: str = "fast",
) -> tuple[Tensor, Tensor | None]:
    """The average with a table.

    Args:
        k: [B, T, E].
        v: [B, T, E].
        table: [M, M], w by true positions; [B, T, M], the rows of these tokens, will do where they are `rows.plain`
            and follow a state.
        rows: segments and padding of the tokens.
        state: [B, S, 2 E], keys and values of the current segment so far (`alignment`); None is no past.
        causal: read the past and the present only.
        algorithm: "fast", or "reference", token by token in float64, which needs the whole table.

    Returns:
        y [B, T, E], zero at padding, and the state after these tokens (None unless causal).

    Raises:
        ValueError: a segment is longer than M, or the algorithm is unknown.
    """
    _check(algorithm)
    both = torch.cat([k, v], 2)
    with full_precision(k):
        if algorithm == "reference":

            def direct(inputs: Tensor) -> Tensor:
                return _direct(inputs, table.double(), causal)

            y, history = each_segment(both.double(), rows, state, direct)
            return y.chunk(2, 2)[0].to(k.dtype), history.to(k.dtype) if causal else None
        compute = torch.promote_types(k.dtype, torch.float32)
        if not causal:
            return _whole_segments(k.to(compute), v.to(compute), table.to(compute), rows).to(k.dtype), None
        aligned = align(both, rows, state)
        tokens, n = aligned.tokens.to(compute), aligned.tokens.shape[1]
        check_length(n, table.shape[-1])
        if rows.plain and state is not None:
            own = table if table.dim() == 3 else table[rows.positions]
            y = _own_rows(tokens, own[..., :n].to(compute), rows.positions)
        else:
            keys, values = tokens.transpose(0, 1).chunk(2, 2)  # n R E
            mixed: Tensor = _Averages.apply(keys.flatten(1), values.flatten(1), table[:n, :n].to(compute))
            y = aligned.pack(mixed.view(keys.shape).transpose(0, 1))
    return y.to(k.dtype), aligned.history


def _check(algorithm: str) -> None:
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm '{algorithm}'; {nearest(algorithm, ALGORITHMS)}")


def _running(k: Tensor, v: Tensor, rows: Rows, state: AverageState | None) -> tuple[Tensor, AverageState]:
    """Sums relative to the largest key so far decay whenever that grows."""
    if rows.valid is not None:
        k, v = (t.masked_fill(~rows.valid[..., None], fill) for t, fill in ((k, -torch.inf), (v, 0)))
    past = None if state is None else state.peak.to(k.dtype)
    with torch.no_grad():
        peak = _running_peak(k.detach(), rows, past)
        before = torch.cat([(peak[:, 0] if past is None else past)[:, None], peak[:, :-1]], 1)
        log_decay = torch.where(before.isfinite() & peak.isfinite(), before - peak, 0).clamp(max=0)
        reference = torch.where(peak.isfinite(), peak, 0)
    weights = (k - reference).exp()
    sums = None if state is None else state.sums.to(k.dtype)
    terms, decays = torch.cat([weights * v, weights], 2), log_decay.repeat(1, 1, 2)
    totals, sums = scan(terms, decays, rows=rows, state=sums, causal=True)
    total, weight = totals.chunk(2, 2)
    if rows.valid is not None:
        total, weight = torch.where(rows.valid[..., None], total, 0), torch.where(rows.valid[..., None], weight, 1)
    assert sums is not None
    return total / weight, AverageState(sums, peak[:, -1].clone())


def _running_peak(k: Tensor, rows: Rows, past: Tensor | None) -> Tensor:
    """The largest key [B, T, E] of the segment so far; -inf before the first token."""
    if rows.starts is None:
        peak = k.cummax(1).values
        return peak if past is None else torch.maximum(peak, past[:, None])
    steps = torch.arange(k.shape[1], device=k.device)
    begins = torch.where(rows.starts, steps, -1).cummax(1).values  # B T, -1: in the past
    peak, distance = k, 1
    while distance < k.shape[1]:
        # each has seen `distance` tokens, and looks where the next as many have been seen
        back = functional.pad(peak, (0, 0, distance, 0), value=-torch.inf)[:, : k.shape[1]]
        inside = (steps - distance >= begins)[..., None]
        peak, distance = torch.where(inside, torch.maximum(peak, back), peak), 2 * distance
    return peak if past is None else torch.where((begins < 0)[..., None], torch.maximum(peak, past[:, None]), peak)


def _step_by_step(k: Tensor, v: Tensor, rows: Rows, state: AverageState | None) -> tuple[Tensor, AverageState]:
    """The definition: one token after the other."""
    total = weight = torch.zeros_like(k[:, 0])
    peak = torch.full_like(total, -torch.inf)
    if state is not None:
        (total, weight), peak = state.sums.to(k.dtype).chunk(2, 1), state.peak.to(k.dtype)
    outputs = []
    for t in range(k.shape[1]):
        if rows.starts is not None:
            start = rows.starts[:, t, None]
            total, weight, peak = (torch.where(start, x, y) for x, y in ((0, total), (0, weight), (-torch.inf, peak)))
        higher = torch.maximum(peak, k[:, t]).detach()
        kept, own = (peak - higher).exp(), (k[:, t] - higher).exp()
        after = (kept * total + own * v[:, t], kept * weight + own, higher)
        valid = k.new_ones(k.shape[0], 1).bool() if rows.valid is None else rows.valid[:, t, None]
        total, weight, peak = (torch.where(valid, x, y) for x, y in zip(after, (total, weight, peak), strict=True))
        outputs.append(torch.where(valid, total, 0) / torch.where(valid, weight, 1))
    return torch.stack(outputs, 1), AverageState(torch.cat([total, weight], 1), peak)


def _whole_segments(k: Tensor, v: Tensor, table: Tensor | None, rows: Rows) -> Tensor:
    """In two directions one reference for each segment and channel is enough: [B, T, E]."""
    aligned = align(torch.cat([k, v], 2), rows, None)
    keys, values = aligned.tokens.chunk(2, 2)
    n, lengths = keys.shape[1], aligned.lengths()
    if lengths is not None:
        keys = keys.masked_fill((torch.arange(n, device=k.device) >= lengths[:, None])[..., None], -torch.inf)
    weights = (keys - keys.detach().amax(1, keepdim=True)).exp()
    if table is None:
        average = (weights * values).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        return aligned.pack(average.expand_as(keys))
    check_length(n, table.shape[-1])
    factors = (table[:n, :n] - table[:n, :n].detach().amax(1, keepdim=True)).exp()
    total, weight = (torch.einsum("ts,rse->rte", factors, t) for t in (weights * values, weights))
    return aligned.pack(total / weight.clamp(min=torch.finfo(weight.dtype).tiny))


def _own_rows(tokens: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """Keys and values [B, n, 2 E] with their history, the rows [B, T, n] of the tokens at `positions` -> [B, T, E]."""
    k, v = tokens.chunk(2, 2)
    steps, outputs = torch.arange(k.shape[1], device=k.device), []
    for part, at in zip(table.split(BLOCK, 1), positions.split(BLOCK, 1), strict=True):
        scores = part[..., None] + k[:, None]  # B t n E
        weights = scores.masked_fill((steps > at[..., None])[..., None], -torch.inf).softmax(2)
        outputs.append(torch.einsum("btne,bne->bte", weights, v))
    return torch.cat(outputs, 1)


class _Averages(torch.autograd.Function):
    """Causal averages of v [n, C] with keys [n, C] and a table [n, n]; weights are made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        y, log_weight = torch.empty_like(v), torch.empty_like(k)
        for own, scores, before in _parts(k, table):
            peak = scores.amax(1)
            weights = (scores - peak[:, None]).exp_()
            total, weight = torch.einsum("tsc,sc->tc", weights, v[own]), weights.sum(1)
            if before is not None:
                factors, shared, reference = before
                higher = torch.maximum(peak, reference)
                inside, outside = (peak - higher).exp_(), (reference - higher).exp_()
                total = inside * total + outside * (factors @ (shared * v[: own.start]))
                weight = inside * weight + outside * (factors @ shared)
                peak = higher
            weight.clamp_(min=torch.finfo(weight.dtype).tiny)
            torch.div(total, weight, out=y[own])
            torch.add(peak, weight.log_(), out=log_weight[own])
        ctx.save_for_backward(k, v, table, y, log_weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v, table, y, log_weight = ctx.saved_tensors
        # Of each weight a[t, s]: through values a g[t], through keys and table a g[t] (v[s] - y[t]).
        grad_k, grad_v, grad_table = (torch.zeros_like(t) for t in (k, v, table))
        for own, scores, before in _parts(k, table):
            given = grad[own]
            weights = (scores - log_weight[own][:, None]).exp_().mul_(given[:, None])
            grad_v[own] += weights.sum(0)
            weights.mul_(v[own] - y[own][:, None])
            grad_k[own] += weights.sum(0)
            grad_table[own, own] = weights.sum(2)
            if before is None:
                continue
            factors, shared, reference = before
            past = slice(0, own.start)
            given = (reference - log_weight[own]).exp_().mul_(given)
            removed, weighted = given * y[own], shared * v[past]
            through = factors.T @ given
            grad_v[past].addcmul_(shared, through)
            grad_k[past].addcmul_(weighted, through).addcmul_(shared, factors.T @ removed, value=-1)
            grad_table[own, past] = factors * (given @ weighted.T - removed @ shared.T)
        return grad_k, grad_v, grad_table


Before = tuple[Tensor, Tensor, Tensor]
"""exp(w - its largest of each row) [t, s], exp(k - its largest) [s, C], and both largest together [t, C]."""


def _parts(k: Tensor, table: Tensor) -> Iterator[tuple[slice, Tensor, Before | None]]:
    """Blocks of tokens, the scores [t, s, C] inside each, and what lies before it."""
    ahead = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=k.device).triu_(1)
    peak = k[0]
    for start in range(0, len(k), BLOCK):
        own, past = slice(start, min(len(k), start + BLOCK)), slice(0, start)
        size = own.stop - start
        scores = k[own] + table[own, own].masked_fill(ahead[:size, :size], -torch.inf)[..., None]
        before = None
        if start:
            highest = table[own, past].amax(1, keepdim=True)
            before = (table[own, past] - highest).exp_(), (k[past] - peak).exp_(), highest + peak
        yield own, scores, before
        peak = torch.maximum(peak, k[own].amax(0))


def _direct(inputs: Tensor, table: Tensor, causal: bool) -> Tensor:
    """The definition, one output after another: keys and values [n, 2 E] -> averages and zeros [n, 2 E]."""
    n, steps = len(inputs), list[Tensor]()
    check_length(n, table.shape[0])
    k, v = inputs.chunk(2, 1)
    for row in table[:n].unbind(0):
        end = len(steps) + 1 if causal else n
        steps.append(((k[:end] + row[:end, None]).softmax(0) * v[:end]).sum(0))
    y = torch.stack(steps)
    return torch.cat([y, torch.zeros_like(y)], 1)
