"""Gated linear recurrence whose queries and keys are shared by the heads of a group, with one decay for each head.

    S[t] = a[t] S[t-1] + k[t] v[t]ᵀ          o[t] = S[t]ᵀ q[t]          q and k the same for M heads in a row

The meaning is that of `recurrence` with queries and keys repeated for each head. Here they are not: scores between
tokens and the products with the state are computed once a group, with the values of all its heads side by side, and
decays act on what is read and written instead of on queries and keys.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..segments import Rows
from .choice import in_use
from .chunks import (
    Gates,
    Moment,
    Together,
    find_together,
    full_precision,
    gradient_of_log_decay,
    joints,
    levels,
    run_form,
    split,
)
from .recurrence import recurrence

CHUNK = 64
"""The most tokens in a chunk; a power of two. Twice that of `chunks`, as the work inside chunks is shared."""


def shared_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    algorithm: str = "chunked",
) -> tuple[Tensor, Tensor | None]:
    """`recurrence` for H heads in G groups.

    Args:
        q: [B, T, G, K].
        k: [B, T, G, K].
        v: [B, T, H, V], the heads of one group in a row.
        log_decay: [B, T, H], log a ≤ 0.
        state: [B, H, K, V] before the first token; None is zero.
        algorithm: "chunked" (by what `choice.using` has chosen), or "reference": one token after the other in float64.

    Returns:
        o [B, T, H, V], and the state after the last token in float32 or wider (None when two-directional).

    Raises:
        ValueError: unknown algorithm.
    """
    G, M = q.shape[2], v.shape[2] // q.shape[2]
    step_by_step = causal and q.shape[1] == 1
    if algorithm != "chunked" or step_by_step or in_use() is not None:
        q, k = (x.repeat_interleave(M, 2) for x in (q, k))
        return recurrence(q, k, v, log_decay, rows=rows, state=state, causal=causal, algorithm=algorithm)
    if state is not None:
        state = state.unflatten(1, (G, M)).transpose(2, 3).flatten(3)
    o, state = run_form(
        {"chunked": _chunked},
        algorithm,
        q,
        {"k": k, "v": v.unflatten(2, (G, M)).flatten(3)},
        log_decay,
        widths=(k.shape[-1], M * v.shape[-1]),
        rows=rows,
        state=state,
        causal=causal,
    )
    if state is not None:
        state = state.unflatten(3, (M, -1)).transpose(2, 3).flatten(1, 2)
    return o.unflatten(3, (M, -1)).flatten(2, 3), state


def _chunked(
    q: Tensor, writes: dict[str, Tensor], gates: Gates, state: Tensor, moment: Moment
) -> tuple[Tensor, Tensor]:
    """Quadratic inside chunks, linear between them."""
    assert gates.log_decay is not None
    T, G = q.shape[1], q.shape[2]
    C = min(CHUNK, 1 << (T - 1).bit_length())
    log_decay = gates.log_decay.squeeze(-1).unflatten(2, (G, -1))  # B T G M
    q, k, v, log_decay = (split(x, C) for x in (q, writes["k"], writes["v"], log_decay))
    masks = None if gates.starts is None else find_together(gates.starts, C)
    o, state = _SharedKeys.apply(q, k, v, log_decay, state, masks, moment == "decayed")
    return o.flatten(2, 3)[:, :, :T].transpose(1, 2), state


class _SharedKeys(torch.autograd.Function):
    """o [B, G, N, C, M·V] and the last state, of N chunks: q, k [..., C, K], v [..., C, M·V], log-decays [..., C, M].

    One head after the other where scores differ by their decays, so that what belongs to one head stays in the cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor,
        state: Tensor,
        masks: Together | None,
        strict: bool,
    ) -> tuple[Tensor, Tensor]:
        decays = _multiply(log_decay, masks, strict)
        scores = q @ k.mT
        values = v.unflatten(-1, (log_decay.shape[-1], -1))  # B G N C M V
        added = k.mT @ (values * decays.suffix).flatten(-2)
        before, last = _run_states(added, decays.keep, state)
        across = q @ before
        o = across.view_as(values) * decays.prefix
        for pairs, value, output in zip(decays.pairs, values.unbind(-2), o.unbind(-2), strict=True):
            output += _product(scores * pairs, value)
        ctx.save_for_backward(q, k, v, scores, before, across, *decays)
        return o.flatten(-2), last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, scores, before, across, *factors = ctx.saved_tensors
        decays = _Decays(*factors)
        values = v.unflatten(-1, (decays.pairs.shape[0], -1))
        with full_precision(q):
            d_outputs = d_o.view_as(values)
            d_across = d_outputs * decays.prefix
            d_prefix = (d_across * across.view_as(values)).sum(-1)
            d_across = d_across.flatten(-2)
            d_added, d_whole, d_state = _run_states_back(q.mT @ d_across, before, decays.keep, d_last)
            d_values = (k @ d_added).view_as(values).mul_(decays.suffix)
            d_suffix = (d_values * values).sum(-1)
            d_scores = torch.zeros_like(scores)
            heads = (x.unbind(-2) for x in (values, d_outputs, d_values))
            for head, (pairs, value, d_output, d_value) in enumerate(zip(decays.pairs, *heads, strict=True)):
                d_value += _product((scores * pairs).mT, d_output)
                d_pairs = _product(d_output, value.mT).mul_(pairs)
                d_scores += d_pairs
                d_logs = d_pairs.mul_(scores)
                d_logs.diagonal(dim1=-2, dim2=-1).zero_()
                d_prefix[..., head] += d_logs.sum(-1) - d_logs.sum(-2)
            d_q = (d_across @ before.mT).add_(d_scores @ k)
            d_k = ((values * decays.suffix).flatten(-2) @ d_added.mT).add_(d_scores.mT @ q)
        d_log_decay = gradient_of_log_decay(d_prefix, d_suffix, d_whole)
        return d_q, d_k, d_values.flatten(-2), d_log_decay, d_state, None, None


class _Decays(NamedTuple):
    """Products of decays in chunks."""

    pairs: Tensor
    """[M, B, G, N, C, C]: from one token to a later one, lower triangular."""
    prefix: Tensor
    """[B, G, N, C, M, 1]: from the chunk's beginning to a token, inclusive."""
    suffix: Tensor
    """[B, G, N, C, M, 1]: from a token, exclusive, to the chunk's end."""

    @property
    def keep(self) -> Tensor:
        """[B, G, N, 1, M, 1]: over the whole chunk."""
        return self.prefix[..., -1:, :, :]


def _multiply(log_decay: Tensor, masks: Together | None, strict: bool) -> _Decays:
    """The products of log-decays [B, G, N, C, M]; with `strict`, none from a token to itself."""
    prefix = log_decay.exp().movedim(-1, 0)[..., None].contiguous()  # M B G N C 1
    suffix = torch.ones_like(prefix)
    pairs = torch.zeros(*prefix.shape[:-1], prefix.shape[-2], dtype=prefix.dtype, device=prefix.device)
    if not strict:
        pairs.diagonal(dim1=-2, dim2=-1).fill_(1)
    for c, later, earlier in levels(prefix, suffix):
        torch.mul(later, earlier.mT, out=joints(pairs, c))
    if masks is not None:
        pairs.mul_(masks.pairs)
        prefix.mul_(masks.first)
        suffix.mul_(masks.last)
    return _Decays(pairs, *(x.movedim(0, -2).contiguous() for x in (prefix, suffix)))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for [B, G, N, X, Y] and [B, G, N, Y, Z], whose rows need not lie side by side."""
    return torch.bmm(a.flatten(0, 2), b.flatten(0, 2)).unflatten(0, a.shape[:3])


def _run_states(added: Tensor, keep: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each chunk, [B, G, N, K, M·V], and the last: S[n+1] = keep[n] ⊙ S[n] + added[n]."""
    before, last = torch.empty_like(added), torch.empty_like(state)
    before[:, :, 0] = state
    added, before_by_head, last_by_head = (x.unflatten(-1, (keep.shape[-2], -1)) for x in (added, before, last))
    befores = before_by_head.unbind(2)
    for *step, after in zip(added.unbind(2), keep.unbind(2), befores, (*befores[1:], last_by_head), strict=True):
        torch.addcmul(*step, out=after)
    return before, last


def _run_states_back(d_before: Tensor, before: Tensor, keep: Tensor, d_last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of what was added [B, G, N, K, M·V], of the logarithms of keep [B, G, N, 1, M], of the first state."""
    d_added, d_state = torch.empty_like(d_before), torch.empty_like(d_last)
    d_added[:, :, -1] = d_last
    d_keep = torch.empty_like(keep)
    chunks = [x.unflatten(-1, (keep.shape[-2], -1)) for x in (d_before, before, d_added, d_state)]
    d_befores, befores, d_addeds = (x.unbind(2) for x in chunks[:3])
    steps = zip(
        d_befores, keep.unbind(2), d_addeds, (chunks[3], *d_addeds[:-1]), befores, d_keep.unbind(2), strict=True
    )
    for d_before_n, keep_n, d_added_n, earlier, before_n, d_keep_n in reversed(list(steps)):
        torch.addcmul(d_before_n, keep_n, d_added_n, out=earlier)
        d_keep_n.copy_((d_added_n * before_n).sum((-3, -1), keepdim=True))
    return d_added, (d_keep * keep).squeeze(-1), d_state
