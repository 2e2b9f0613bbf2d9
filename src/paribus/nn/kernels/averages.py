"""Averages over tokens with positive weights, channel by channel: what attention becomes when scores do not compare.

    y[t] = Σ_s exp(k[s] + w[t, s]) v[s] / Σ_s exp(k[s] + w[t, s])

over the past and the present, or the whole segment. Without the table w that is a recurrence with a running maximum.
With it, the table is cut into squares below its diagonal, the larger the farther from it; in each, keys are relative
to the largest one of their channel, and entries to the largest one of their row, so that exponentials never overflow
and products are of matrices. In a square, a row of w may spread over some eighty; what is below that counts as nothing.
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

BLOCK = 128
"""Tokens that read everything before them at once; inside, squares grow by doubling. A power of two."""
CONTINUED = 32
"""Tokens that are continued at once, each with weights of its own for all channels of all before it."""
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
    for part, at in zip(table.split(CONTINUED, 1), positions.split(CONTINUED, 1), strict=True):
        scores = part[..., None] + k[:, None]  # B t n E
        weights = scores.masked_fill((steps > at[..., None])[..., None], -torch.inf).softmax(2)
        outputs.append(torch.einsum("btne,bne->bte", weights, v))
    return torch.cat(outputs, 1)


class _Averages(torch.autograd.Function):
    """Causal averages of v [n, C] with keys [n, C] and a table [n, n]; weights are made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        padded, n = _padded(k, v, table), len(k)
        k, v, table = padded
        peak = k + table.diagonal()[:, None]
        total, weight = v.clone(), torch.ones_like(k)
        for piece in _pieces(len(k)):
            (keys, values), (own_total, own_weight, own_peak) = piece.sources(k, v), piece.readers(total, weight, peak)
            factors, shared, reference = _exponentials(piece.entries(table), keys)
            higher = torch.maximum(own_peak, reference)
            inside, outside = (own_peak - higher).exp_(), (reference - higher).exp_()
            own_total.mul_(inside).addcmul_(outside, factors @ (shared * values))
            own_weight.mul_(inside).addcmul_(outside, factors @ shared)
            own_peak.copy_(higher)
        weight.clamp_(min=torch.finfo(weight.dtype).tiny)
        y = total.div_(weight)
        ctx.save_for_backward(*padded, y, peak.add_(weight.log_()))
        ctx.length = n
        return y[:n].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v, table, y, log_weight = ctx.saved_tensors
        n = ctx.length
        grad = functional.pad(grad, (0, 0, 0, len(k) - n))
        # Of each weight a[t, s]: through values a g[t], through keys and table a g[t] (v[s] - y[t]).
        grad_v = (k + table.diagonal()[:, None]).sub_(log_weight).exp_().mul_(grad)
        grad_k = grad_v * (v - y)
        grad_table = torch.diag(grad_k.sum(1))
        for piece in _pieces(len(k)):
            keys, values, sum_k, sum_v = piece.sources(k, v, grad_k, grad_v)
            own_y, own_log_weight, own_grad = piece.readers(y, log_weight, grad)
            factors, shared, reference = _exponentials(piece.entries(table), keys)
            given = (reference - own_log_weight).exp_().mul_(own_grad)
            removed, weighted = given * own_y, shared * values
            through = factors.mT @ given
            sum_v.addcmul_(shared, through)
            sum_k.addcmul_(weighted, through).addcmul_(shared, factors.mT @ removed, value=-1)
            piece.entries(grad_table).copy_(factors * (given @ weighted.mT - removed @ shared.mT))
        return grad_k[:n], grad_v[:n], grad_table[:n, :n]


def _padded(k: Tensor, v: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """To whole blocks, with tokens that nobody reads; of fewer tokens than a block, to a power of two."""
    more = -len(k) % min(BLOCK, 1 << (len(k) - 1).bit_length())
    if not more:
        return k, v, table
    return functional.pad(k, (0, 0, 0, more)), functional.pad(v, (0, 0, 0, more)), functional.pad(table, (0, more) * 2)


class _Piece(NamedTuple):
    """Equal squares of the table: in each of `stretches` parts of tokens, those that read and those that are read."""

    stretches: int
    read: slice
    reading: slice

    def sources(self, *tensors: Tensor) -> list[Tensor]:
        """[N, C] each -> [x, s, C], what is read."""
        return [t.view(self.stretches, -1, t.shape[1])[:, self.read] for t in tensors]

    def readers(self, *tensors: Tensor) -> list[Tensor]:
        """[N, C] each -> [x, t, C], what reads."""
        return [t.view(self.stretches, -1, t.shape[1])[:, self.reading] for t in tensors]

    def entries(self, table: Tensor) -> Tensor:
        """[N, N] -> [x, t, s]."""
        size = len(table) // self.stretches
        parts = table.view(self.stretches, size, self.stretches, size).diagonal(dim1=0, dim2=2).movedim(2, 0)
        return parts[:, self.reading, self.read]


def _pieces(length: int) -> Iterator[_Piece]:
    """All of the table below its diagonal: in each block, halves that read the halves before; then all before it."""
    half = 1
    while 2 * half <= min(BLOCK, length):
        yield _Piece(length // (2 * half), slice(0, half), slice(half, 2 * half))
        half *= 2
    for start in range(BLOCK, length, BLOCK):
        yield _Piece(1, slice(0, start), slice(start, start + BLOCK))


def _exponentials(entries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(w - largest of its row) [x, t, s], exp(k - largest of its channel) [x, s, C], both largest [x, t, C]."""
    highest, peak = entries.amax(2, keepdim=True), keys.amax(1, keepdim=True)
    return (entries - highest).exp_(), (keys - peak).exp_(), highest + peak


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
