"""What turns scores into weights where torch has nothing fused: sigmoid, ReLU, softpick, stick-breaking; references.

With x the scores of a query and n the number of tokens that it sees:

    softmax          e^x_s / Σ e^x                            softmax_one    e^x_s / (1 + Σ e^x)
    sigmoid          1 / (1 + e^(log n − x_s))                relu           max(x_s, 0) / n
    softpick         max(e^x_s − 1, 0) / Σ |e^x − 1|          (zero where every score is)
    stick_breaking   β_s Π (1 − β_r) over the tokens r between s and the query, β = sigmoid(x)

A stick is broken from the query's neighbour to the far end, the query itself left out; with two directions, one stick
to each side. Slots stand before the tokens, are seen by every query and do not count in n; the slot of stick-breaking
gets what is left of the stick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Seen(NamedTuple):
    """Who sees what, for a whole matrix of scores [B, H, T, n + S] or for one query's [B, H, n + S]."""

    allowed: Tensor
    """[B or 1, 1, T, n + S] or [B or 1, 1, n + S] bool."""
    num_slots: int
    """How many columns before the tokens' are slots."""
    causal: bool
    first: int
    """The token, of S, that the first query is itself."""

    @property
    def num_tokens(self) -> Tensor:
        """How many tokens each query sees, with a last dimension of 1."""
        return self.allowed[..., self.num_slots :].sum(-1, keepdim=True)


def _sigmoid(scores: Tensor, seen: Seen) -> Tensor:
    return (scores - seen.num_tokens.to(scores.dtype).log()).sigmoid().masked_fill(~seen.allowed, 0)


def _relu(scores: Tensor, seen: Seen) -> Tensor:
    return scores.masked_fill(~seen.allowed, 0).relu() / seen.num_tokens


def _softpick(scores: Tensor, seen: Seen) -> Tensor:
    x = scores.masked_fill(~seen.allowed, 0)  # a score of zero has no weight and adds nothing
    top = x.detach().amax(-1, keepdim=True).clamp(min=0)
    excess = (x - top).exp() - (-top).exp()
    total = excess.abs().sum(-1, keepdim=True)
    return excess.relu() / torch.where(total > 0, total, 1)


def _stick_breaking(scores: Tensor, seen: Seen) -> Tensor:
    """Logarithms are summed outwards from the query, all of one sign, so that nothing cancels."""
    x, allowed = scores[..., seen.num_slots :], seen.allowed[..., seen.num_slots :]
    broken, kept = functional.logsigmoid(x), functional.logsigmoid(-x)
    every = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device)
    weights, left = torch.zeros_like(x), torch.zeros_like(x[..., :1])
    for before in (True, False)[: 1 if seen.causal else 2]:
        mine = allowed & (every.tril(seen.first - 1) if before else every.triu(seen.first + 1))
        outwards = _reversed if before else _unchanged
        reached = outwards(kept.masked_fill(~mine, 0)).cumsum(-1)
        passed = outwards(functional.pad(reached[..., :-1], (1, 0)))
        weights = weights + (broken + passed).exp().masked_fill(~mine, 0)
        left = left + reached[..., -1:].exp()
    return torch.cat([left] * seen.num_slots + [weights], -1)


def _reversed(t: Tensor) -> Tensor:
    return t.flip(-1)


def _unchanged(t: Tensor) -> Tensor:
    return t


def _softmax(scores: Tensor, seen: Seen) -> Tensor:
    return scores.masked_fill(~seen.allowed, -torch.inf).softmax(-1)


NORMALISERS: dict[str, Callable[[Tensor, Seen], Tensor]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "relu": _relu,
    "softpick": _softpick,
    "stick_breaking": _stick_breaking,
}
"""(scores [B, H, T, n + S], what is seen) -> weights of the same shape; for softmax_one there is a slot of zeros."""


def reference_weights(normaliser: str, scores: Tensor, seen: Seen) -> Tensor:
    """The definition, for one query: scores [B, H, n + S] in float64 -> weights of the same shape."""
    if normaliser == "stick_breaking":
        return _reference_sticks(scores, seen)
    x = scores.masked_fill(~seen.allowed, -torch.inf)
    top = x.amax(-1, keepdim=True)
    if normaliser == "softmax":
        return (x - top).exp() / (x - top).exp().sum(-1, keepdim=True)
    top = top.clamp(min=0)
    if normaliser == "softmax_one":
        return (x - top).exp() / ((-top).exp() + (x - top).exp().sum(-1, keepdim=True))
    if normaliser == "sigmoid":
        return 1 / (1 + (seen.num_tokens.double().log() - x).exp())
    if normaliser == "relu":
        return x.clamp(min=0) / seen.num_tokens
    excess = ((x - top).exp() - (-top).exp()).masked_fill(~seen.allowed, 0)
    total = excess.abs().sum(-1, keepdim=True)
    return torch.where(total > 0, excess.clamp(min=0) / total, 0)


def _reference_sticks(scores: Tensor, seen: Seen) -> Tensor:
    share, first, query = scores.sigmoid(), seen.num_slots, seen.num_slots + seen.first
    before, after = range(query - 1, first - 1, -1), range(query + 1, scores.shape[-1])
    weights = dict.fromkeys(range(scores.shape[-1]), torch.zeros_like(scores[..., 0]))
    for side in (before,) if seen.causal else (before, after):
        left = torch.ones_like(scores[..., 0])
        for s in side:
            broken = share[..., s] * seen.allowed[..., s]
            weights[s], left = left * broken, left * (1 - broken)
        for slot in range(first):
            weights[slot] = weights[slot] + left
    return torch.stack(list(weights.values()), -1)
