"""Chunks read on the value side while each key channel decays at its own rate: the decays act on what is read out.

    o[t] = sum over s ≤ t of pairs[t, s] (a[s+1] ⋯ a[t] ⊙ k[s]),   pairs[t, s] = q[t] · v[s]

No score between two tokens can hold such decays, so the sum goes level by level, as scores do in `chunks`: from s to
the end of its half of a block, from there to t, decays only ever multiplied.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunks import Gates, find_together, full_precision, gradient_of_log_decay, halves, joints, levels, product, split


class ValueWeights(NamedTuple):
    """What tokens read inside chunks, and the weights at their edges as `chunks.Weights` has them."""

    inside: Tensor
    """[B, H, N, C, K]: what a token reads of its own chunk."""
    read: Tensor
    """[B, H, N, C, K]: decay from the chunk's beginning to a token, inclusive."""
    write: Tensor
    """[B, H, N, C, K]."""
    keep: Tensor
    """[B, H, N, K, 1]."""


def weigh_values(pairs: Tensor, k: Tensor, gates: Gates) -> ValueWeights:
    """The weights of chunked k [B, H, N, C, K] and pairs [B, H, N, C, C], lower triangular, with decay per channel.

    Args:
        gates: of the tokens, not chunked.
    """
    assert gates.log_decay is not None
    C = k.shape[-2]
    if gates.starts is None:
        return ValueWeights(*_Values.apply(pairs, k, split(gates.log_decay, C)))
    together = find_together(gates.starts, C)
    weights = ValueWeights(*_Values.apply(torch.where(together.pairs, pairs, 0), k, split(gates.log_decay, C)))
    return ValueWeights(
        weights.inside,
        torch.where(together.first, weights.read, 0),
        torch.where(together.last, weights.write, 0),
        torch.where(together.whole, weights.keep, 0),
    )


class _Values(torch.autograd.Function):
    """`ValueWeights` of pairs [..., C, C], k [..., C, K] and log-decays [..., C, K].

    But for t = s, o is exp(running sum) ⊙ what depends on k only through k exp(-running sum), so the gradient of a
    running sum is o ⊙ do - k ⊙ dk.
    """

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, k: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        prefix, suffix = log_decay.exp(), torch.ones_like(log_decay)
        earlier_tokens = torch.zeros_like(k)
        for c, later, earlier in levels(prefix, suffix):
            sums = product(joints(pairs, c), halves(k, c)[0] * earlier)
            halves(earlier_tokens, c)[1].addcmul_(sums, later)
        ctx.save_for_backward(pairs, k, log_decay, earlier_tokens)
        inside = torch.addcmul(earlier_tokens, pairs.diagonal(dim1=-2, dim2=-1)[..., None], k)
        return inside, prefix, suffix * k, prefix[..., -1, :, None].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_inside: Tensor, d_read: Tensor, d_write: Tensor, d_keep: Tensor) -> tuple[Tensor, ...]:
        pairs, k, log_decay, earlier_tokens = ctx.saved_tensors
        prefix, suffix = log_decay.exp(), torch.ones_like(log_decay)
        d_pairs, d_k = (d_inside * k).sum(-1).diag_embed(), torch.zeros_like(k)
        with full_precision(k):
            for c, later, earlier in levels(prefix, suffix):
                d_sums, writes = halves(d_inside, c)[1] * later, halves(k, c)[0] * earlier
                joints(d_pairs, c).copy_(d_sums @ writes.mT)
                halves(d_k, c)[0].addcmul_(product(joints(pairs, c).mT, d_sums), earlier)
        d_prefix = (d_inside * earlier_tokens).addcmul_(d_k, k, value=-1).addcmul_(d_read, prefix)
        d_write = suffix.mul_(d_write)
        d_log_decay = gradient_of_log_decay(d_prefix, d_write * k, d_keep.mT * prefix[..., -1:, :])
        d_k.add_(d_write).addcmul_(pairs.diagonal(dim1=-2, dim2=-1)[..., None], d_inside)
        return d_pairs, d_k, d_log_decay
