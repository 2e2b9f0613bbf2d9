"""Attention a few queries at a time, for normalisers and biases that torch's fused attention does not know.

Scores and weights of one block of queries are made, used and forgotten, and made again for the gradient, so that they
stay in the processor's cache and no T × S matrix is kept. What lies after a causal block is not computed; the counter
of FLOPs is told of it all the same, as fused attention is charged for all T × S products too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .cost import report_flops
from .normalisers import NORMALISERS, Seen

_SCORES = 2**19
"""Scores of one block, of all its rows and heads together."""
_QUERIES = 128


class Block(NamedTuple):
    """Some queries of some rows, and the columns that they may see."""

    batch: slice
    rows: slice
    columns: slice


class Distances(NamedTuple):
    """How far, in true positions, queries are ahead of tokens; what is beyond the bounds counts as standing there."""

    queries: Tensor
    """[B or 1, T] true positions."""
    keys: Tensor
    """[B or 1, S] true positions."""
    lowest: int
    highest: int

    def places(self, rows: slice, columns: slice, batch: slice) -> Tensor:
        """[B or 1, C, S] int64: 0 for the lowest distance."""
        queries, keys = (t if len(t) == 1 else t[batch] for t in (self.queries, self.keys))
        distance = queries[:, rows, None] - keys[:, None, columns]
        return distance.clamp(self.lowest, self.highest) - self.lowest


@dataclass(frozen=True)
class Plan:
    """Which queries see which columns: the slots, then the tokens."""

    normaliser: str
    num_slots: int
    causal: bool
    allowed: Tensor | None
    """[B, 1, T, S] bool, without slots; None: everything up to the query (causal), or everything."""
    num_queries: int
    num_tokens: int
    distances: Distances | None = None
    """By which a bias is found; the bias itself, which has a gradient, goes beside the plan."""

    def blocks(self, B: int, H: int) -> Iterator[Block]:
        """All queries of B rows."""
        T, S = self.num_queries, self.num_tokens
        size = min(T, _QUERIES)
        together = max(1, _SCORES // (H * size * (self.num_slots + S)))
        for low in range(0, B, together):
            for start in range(0, T, size):
                stop = min(start + size, T)
                end = self.num_slots + (S - T + stop if self.causal else S)
                yield Block(slice(low, low + together), slice(start, stop), slice(0, end))

    def scores(self, q: Tensor, k: Tensor, levels: Tensor | None, bias: Tensor | None, block: Block) -> Tensor:
        """[B, H, C, columns] of the block."""
        batch, rows, columns = block
        scores = q[batch, :, rows] @ k[batch, :, columns].transpose(-1, -2)
        if levels is not None:
            mine = levels[batch]
            scores[..., self.num_slots :] += (mine[:, :, self.own(rows), None] - mine[:, :, None]) * self.side(q, rows)
        if bias is not None:
            scores[..., self.num_slots :] += bias[:, self.places(block)].transpose(0, 1)
        return scores

    def places(self, block: Block) -> Tensor:
        """[B or 1, C, S] int64: where the bias of each query and token of a block is found."""
        assert self.distances is not None, "there is a bias"
        return self.distances.places(block.rows, slice(block.columns.stop - self.num_slots), block.batch)

    def weights(self, scores: Tensor, block: Block) -> Tensor:
        """Of the same shape."""
        batch, rows, columns = block
        first, S = self.own(rows).start, columns.stop - self.num_slots
        if self.allowed is None:
            seen = torch.ones(1, 1, rows.stop - rows.start, S, dtype=torch.bool, device=scores.device)
            seen = seen.tril(first) if self.causal else seen
        else:
            seen = self.allowed[batch, :, rows, :S]
        seen = functional.pad(seen, (self.num_slots, 0), value=True)
        return NORMALISERS[self.normaliser](scores, Seen(seen, self.num_slots, self.causal, first))

    def side(self, like: Tensor, rows: slice) -> Tensor:
        """[C, S]: 1 for tokens up to the query, -1 after it."""
        steps = torch.arange(self.num_tokens, device=like.device)
        return torch.where(steps <= steps[self.own(rows), None], 1, -1).to(like.dtype)

    def own(self, rows: slice) -> slice:
        """The tokens that the queries `rows` are themselves."""
        before = self.num_tokens - self.num_queries
        return slice(before + rows.start, before + rows.stop)

    def report(self, q: Tensor, widths: int) -> None:
        """Tell the counter of FLOPs of the products that were left out, `widths` channels of them altogether."""
        B, H = q.shape[:2]
        every = self.num_slots + self.num_tokens
        queries = ((block.rows, every - block.columns.stop) for block in self.blocks(1, B * H))
        left_out = sum((rows.stop - rows.start) * columns for rows, columns in queries)
        if left_out:
            report_flops("attention", 2 * B * H * left_out * widths)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, levels: Tensor | None, bias: Tensor | None, plan: Plan) -> Tensor:
    """o [B, H, T, V] of q [B, H, T, K] and, slots first, k [B, H, n + S, K] and v [B, H, n + S, V].

    Args:
        levels: [B, H, S]: scores of tokens are lowered by what levels fall from the earlier of query and token to
            the later.
        bias: [H, N], that of `plan.distances`.
    """
    o: Tensor = _Blocks.apply(q, k, v, levels, bias, plan)
    return o


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, levels: Tensor | None, bias: Tensor | None, plan: Plan
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, levels, bias)
        ctx.plan = plan
        o = v.new_empty(*q.shape[:3], v.shape[3])
        for block in plan.blocks(*q.shape[:2]):
            batch, rows, columns = block
            o[batch, :, rows] = plan.weights(plan.scores(q, k, levels, bias, block), block) @ v[batch, :, columns]
        plan.report(q, q.shape[3] + v.shape[3])
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outputs
        q, k, v, levels, bias = ctx.saved_tensors
        plan: Plan = ctx.plan
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dlevels, dbias = (None if t is None else torch.zeros_like(t) for t in (levels, bias))
        with torch.autocast(q.device.type, enabled=False):
            for block in plan.blocks(*q.shape[:2]):
                batch, rows, columns = block
                mine = grad[batch, :, rows]
                scores = plan.scores(q, k, levels, bias, block).requires_grad_()
                with torch.enable_grad():
                    weights = plan.weights(scores, block)
                (slope,) = torch.autograd.grad(weights, scores, mine @ v[batch, :, columns].transpose(-1, -2))
                dv[batch, :, columns] += weights.detach().transpose(-1, -2) @ mine
                dq[batch, :, rows] = slope @ k[batch, :, columns]
                dk[batch, :, columns] += slope.transpose(-1, -2) @ q[batch, :, rows]
                slope = slope[..., plan.num_slots :]
                if dbias is not None:
                    places = plan.places(block)
                    summed = slope.sum(0, keepdim=True) if len(places) == 1 else slope
                    dbias.index_add_(1, places.flatten(), summed.transpose(0, 1).flatten(1))
                if dlevels is not None:
                    slope = slope * plan.side(slope, rows)
                    dlevels[batch, :, plan.own(rows)] += slope.sum(-1)
                    dlevels[batch] -= slope.sum(-2)
        plan.report(q, 3 * q.shape[3] + 2 * v.shape[3])
        return dq, dk, dv, dlevels, dbias, None
