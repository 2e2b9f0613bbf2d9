"""Chunks of tokens: what recurrence and delta share to be parallel inside a chunk and sequential only between chunks.

With a[t] the decay into token t, a chunk of C tokens needs only the decays between two of its tokens, from its edge to
a token and from a token to its edge:

    pairs[t, s] = q[t] · (a[s+1] ⋯ a[t] ⊙ k[s])  for s ≤ t       what t reads of s
    read[t]     = a[0] ⋯ a[t] ⊙ q[t]                             what t reads of the state before the chunk
    write[s]    = a[s+1] ⋯ a[C-1] ⊙ k[s]                         what s leaves in the state after the chunk
    keep        = a[0] ⋯ a[C-1]                                  what the chunk leaves of the state before it

Decays are only ever multiplied, never divided by one another: a block of 2c tokens is two halves, and the decay from s
in the first to t in the second is (from s to the end of its half) times (from the beginning of the other half to t).
So nothing overflows, cancels or is clamped, however strong the decay; blocks double until they fill the chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..segments import Rows
from ..settings import nearest

CHUNK = 32
"""The most tokens in a chunk; a power of two."""


@dataclass(frozen=True)
class Gates:
    """What happens to the state just before each token is written."""

    log_decay: Tensor | None
    """[B, T, H, 1 or K] logarithm of the decay, 0 at padding; None: no decay."""
    starts: Tensor | None
    """[B, T] bool: the state is forgotten."""

    def steps(self, T: int) -> Iterator[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]:
        """For each token, what happens to the state [B, H, K, V] before it is written: it is forgotten, it decays."""
        # unbind, since the gradient of an index is as large as what it is taken from
        log_decays = (None,) * T if self.log_decay is None else self.log_decay.unbind(1)
        starts = (None,) * T if self.starts is None else self.starts.unbind(1)
        for log_decay, start in zip(log_decays, starts, strict=True):
            yield partial(_forget, start), partial(_decay, log_decay)

    def reversed(self, own: bool) -> Gates:
        """The gates of the same tokens read from the end, where a segment starts with its last token.

        When t reads a later s, the decays of t + 1 to s lie between them, as they do when s reads t: that of t + 1
        acts before t is written. What rolls round acts on the empty state only. With `own` each token keeps its own
        decay: read before it acts, those of t + 1 to s - 1 lie between t and s.
        """
        starts = None if self.starts is None else self.starts.roll(-1, 1).flip(1)
        if self.log_decay is None:
            return Gates(None, starts)
        return Gates((self.log_decay if own else self.log_decay.roll(-1, 1)).flip(1), starts)


Moment = Literal["written", "decayed", "undecayed"]
"""When a token reads the state: after its own write, before that, or even before the decay into it."""
Form = Callable[[Tensor, dict[str, Tensor], Gates, Tensor, Moment], tuple[Tensor, Tensor]]
"""(q, writes, gates, state, moment of reading) -> (o, state)."""


def run_form(
    forms: Mapping[str, Form],
    algorithm: str,
    q: Tensor,
    writes: dict[str, Tensor],
    log_decay: Tensor | None,
    *,
    widths: tuple[int, int],
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    forward: Moment = "written",
    backward: Moment = "decayed",
) -> tuple[Tensor, Tensor | None]:
    """What the gated kernels share around their forms: precision, padding and the two directions.

    Args:
        forms: "chunked", and "reference": one token after the other.
        writes: [B, T, H, X] each: keys, values and whatever else a form needs; zeros write nothing.
        widths: K and V of the state.
        forward: when a token reads what lies before it.
        backward: when it reads what lies after it; "undecayed" leaves each token its own decay in this direction too.

    Raises:
        ValueError: unknown algorithm.
    """
    if algorithm not in forms:
        raise ValueError(f"unknown algorithm '{algorithm}'; {nearest(algorithm, forms)}")
    reference = algorithm == "reference"
    accumulator = torch.promote_types(q.dtype, torch.float32)
    wide = torch.float64 if reference else accumulator
    run = forms["reference"] if causal and q.shape[1] == 1 else forms[algorithm]
    with full_precision(q):
        read, writes = q.to(wide), {name: x.to(wide) for name, x in writes.items()}
        if rows.valid is not None:
            valid = rows.valid[..., None, None]
            read, writes = torch.where(valid, read, 0), {name: torch.where(valid, x, 0) for name, x in writes.items()}
        gates = make_gates(log_decay, rows, wide)
        empty = read.new_zeros(q.shape[0], q.shape[2], *widths)
        before = empty if state is None else state.to(wide)
        o, after = run(read, writes, gates, before, forward)
        if causal:
            return o.to(q.dtype), after.to(accumulator)
        read, writes = read.flip(1), {name: x.flip(1) for name, x in writes.items()}
        o = o + run(read, writes, gates.reversed(backward == "undecayed"), empty, backward)[0].flip(1)
    return o.to(q.dtype), None


def _forget(start: Tensor | None, state: Tensor) -> Tensor:
    return state if start is None else torch.where(start[:, None, None, None], 0, state)


def _decay(log_decay: Tensor | None, state: Tensor) -> Tensor:
    return state if log_decay is None else log_decay[..., None].exp() * state


def make_gates(log_decay: Tensor | None, rows: Rows, dtype: torch.dtype) -> Gates:
    """Gates from log_decay None, [H] constant, [B, T, H] scalar or [B, T, H, K] per channel."""
    if log_decay is not None:
        B, T = rows.ids.shape
        log_decay = log_decay.to(dtype)
        log_decay = log_decay.expand(B, T, -1)[..., None] if log_decay.dim() < 4 else log_decay
        if rows.valid is not None:
            log_decay = torch.where(rows.valid[..., None, None], log_decay, 0)
    return Gates(log_decay, rows.starts)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off: kernels choose their own precision, with float32 accumulators at least."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def chunk_length(T: int) -> int:
    """The smallest power of two that holds T tokens, at most `CHUNK`."""
    return min(CHUNK, 1 << (T - 1).bit_length())


def split(x: Tensor, C: int) -> Tensor:
    """[B, T, H, X] -> [B, H, N, C, X], filled up with zeros at the end, which neither decay nor write."""
    x = x.transpose(1, 2)
    if missing := -x.shape[2] % C:
        x = torch.nn.functional.pad(x, (0, 0, 0, missing))
    return x.contiguous().unflatten(2, (-1, C))


def merge(x: Tensor, T: int) -> Tensor:
    """[B, H, N, C, X] -> [B, T, H, X]."""
    return x.flatten(2, 3)[:, :, :T].transpose(1, 2)


class Weights(NamedTuple):
    """The weights inside chunks, as this module's docstring defines them."""

    pairs: Tensor
    """[..., B, H, N, C, C], lower triangular."""
    read: Tensor
    """[..., B, H, N, C, K]."""
    write: Tensor
    """[B, H, N, C, K]."""
    keep: Tensor
    """[B, H, N, 1 or K, 1]."""


def weigh(q: Tensor, k: Tensor, gates: Gates) -> Weights:
    """The weights of chunked k [B, H, N, C, K] and q, or several q [..., B, H, N, C, K] that share the work on k.

    Args:
        gates: of the tokens, not chunked.
    """
    C = q.shape[-2]
    if gates.log_decay is None:
        weights = Weights((q @ k.mT).tril_(), q, k, k.new_ones(*k.shape[:3], 1, 1))
    else:
        decayed = _ScalarDecay if gates.log_decay.shape[-1] == 1 else _ChannelDecay
        weights = Weights(*decayed.apply(q, k, split(gates.log_decay, C)))
    if gates.starts is None:
        return weights
    together = find_together(gates.starts, C)
    return Weights(
        torch.where(together.pairs, weights.pairs, 0),
        torch.where(together.first, weights.read, 0),
        torch.where(together.last, weights.write, 0),
        torch.where(together.whole, weights.keep, 0),
    )


class Together(NamedTuple):
    """Between what no start lies, for each chunk."""

    pairs: Tensor
    """[B, 1, N, C, C]: two tokens."""
    first: Tensor
    """[B, 1, N, C, 1]: the chunk's beginning and a token."""
    last: Tensor
    """[B, 1, N, C, 1]: a token and the chunk's end."""
    whole: Tensor
    """[B, 1, N, 1, 1]: the chunk's beginning and its end."""


def find_together(starts: Tensor, C: int) -> Together:
    """The masks of `starts` [B, T] in chunks of C tokens."""
    count = split(starts.float()[..., None, None], C).cumsum(-2)  # B 1 N C 1, starts in the chunk so far
    first = count == 0
    return Together(count == count.mT, first, count == count[..., -1:, :], first[..., -1:, :])


def levels(prefix: Tensor, suffix: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Double blocks from single tokens to the whole chunk; before each doubling, yield what joins two halves.

    Args:
        prefix: [..., C, K] decays; becomes in place their products from the chunk's beginning, inclusive.
        suffix: [..., C, K] ones; becomes in place the products to the chunk's end, exclusive.

    Yields:
        The length c of a half, and [..., C / 2c, c, K] the prefix of second halves and the suffix of first halves.
    """
    c = 1
    while c < prefix.shape[-2]:
        (first, second), first_suffix = halves(prefix, c), halves(suffix, c)[0]
        yield c, second, first_suffix
        first_suffix *= second[..., -1:, :]
        second *= first[..., -1:, :]
        c *= 2


def halves(x: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """The first and second halves [..., C / 2c, c, K] of the blocks of 2c tokens in x [..., C, K]."""
    first, second = x.unflatten(-2, (-1, 2, c)).unbind(-3)
    return first, second


def joints(pairs: Tensor, c: int) -> Tensor:
    """The view [..., C / 2c, c, c] of [..., C, C] where second halves of 2c tokens meet their first halves."""
    m = pairs.shape[-1] // (2 * c)
    blocks = pairs.unflatten(-1, (m, 2, c)).unflatten(-4, (m, 2, c))  # ... m 2 c m 2 c
    return blocks[..., :, 1, :, :, 0, :].diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def gradient_of_log_decay(d_prefix: Tensor, d_suffix: Tensor, d_whole: Tensor) -> Tensor:
    """The gradient of log-decays [..., C, K] from those of their running sums.

    Args:
        d_prefix: of the sums from the chunk's beginning to each token, inclusive.
        d_suffix: of the sums from each token, exclusive, to the chunk's end.
        d_whole: [..., 1, K], of the sum over the chunk.
    """
    C = d_prefix.shape[-2]
    ones = torch.ones(C, C, dtype=d_prefix.dtype, device=d_prefix.device)
    with full_precision(d_prefix):
        # two sums of their own: from the difference of one and its total, small gradients do not come back
        return (ones.tril(-1) @ d_suffix).add_(ones.triu() @ d_prefix).add_(d_whole)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for [..., c, c] and [..., c, K]; for the smallest c by columns, as so many tiny products are slow."""
    c = a.shape[-1]
    if c > 2:
        return a @ b
    columns = [a[..., s, None] * b[..., s, None, :] for s in range(c)]
    return columns[0] if c == 1 else columns[0].add_(columns[1])


class _ScalarDecay(torch.autograd.Function):
    """`Weights` of k [..., C, K] and one or several q under log-decays [..., C, 1]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        prefix, suffix = log_decay.exp(), torch.ones_like(log_decay)
        decay = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device).repeat(*k.shape[:-2], 1, 1)
        for c, later, earlier in levels(prefix, suffix):
            torch.mul(later, earlier.mT, out=joints(decay, c))
        pairs = (q @ k.mT).mul_(decay)
        keep = prefix[..., -1:, :]
        ctx.save_for_backward(q, k, decay, prefix, suffix, pairs)
        return pairs, q * prefix, k * suffix, keep.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_pairs: Tensor, d_read: Tensor, d_write: Tensor, d_keep: Tensor) -> tuple[Tensor, ...]:
        q, k, decay, prefix, suffix, pairs = ctx.saved_tensors
        d_logs = (d_pairs * pairs).tril_(-1)
        d_scores = d_pairs * decay
        with full_precision(q):
            d_q, d_k = d_scores @ k, (d_scores.mT @ q).sum_to_size(k.shape)
        d_read, d_write = d_read * prefix, d_write * suffix
        d_prefix = d_logs.sum(-1, keepdim=True) - d_logs.sum(-2)[..., None] + (d_read * q).sum(-1, keepdim=True)
        d_prefix = d_prefix.sum_to_size(prefix.shape)
        d_suffix = (d_write * k).sum(-1, keepdim=True)
        d_log_decay = gradient_of_log_decay(d_prefix, d_suffix, d_keep * prefix[..., -1:, :])
        return d_q.add_(d_read), d_k.add_(d_write), d_log_decay


class _ChannelDecay(torch.autograd.Function):
    """`Weights` of k [..., C, K] and one or several q under log-decays [..., C, K].

    Everything depends on q and k only through q exp(sum) and k exp(-sum), so the gradient of a running sum is
    q ⊙ dq - k ⊙ dk; t = s, where the two are equal, is left out.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        prefix, suffix = log_decay.exp(), torch.ones_like(log_decay)
        pairs = (q * k).sum(-1).diag_embed()
        for c, later, earlier in levels(prefix, suffix):
            reads, writes = halves(q, c)[1] * later, halves(k, c)[0] * earlier
            joints(pairs, c).copy_(reads @ writes.mT)
        keep = prefix[..., -1, :, None].clone()
        ctx.save_for_backward(q, k, log_decay)
        return pairs, q * prefix, suffix.mul_(k), keep

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_pairs: Tensor, d_read: Tensor, d_write: Tensor, d_keep: Tensor) -> tuple[Tensor, ...]:
        q, k, log_decay = ctx.saved_tensors
        prefix, suffix = log_decay.exp(), torch.ones_like(log_decay)
        d_q, d_k = torch.zeros_like(q), torch.zeros_like(k)
        with full_precision(q):
            for c, later, earlier in levels(prefix, suffix):
                reads, writes = halves(q, c)[1] * later, halves(k, c)[0] * earlier
                d_joints = joints(d_pairs, c)
                halves(d_q, c)[1].addcmul_(product(d_joints, writes), later)
                halves(d_k, c)[0].addcmul_(product(d_joints.mT, reads).sum_to_size(writes.shape), earlier)
        d_whole = d_keep.mT * prefix[..., -1:, :]
        d_q.addcmul_(d_read, prefix)
        d_write = suffix.mul_(d_write)
        d_log_decay = gradient_of_log_decay((d_q * q).sum_to_size(k.shape) - d_k * k, d_write * k, d_whole)
        d_diagonal = d_pairs.diagonal(dim1=-2, dim2=-1)[..., None]
        d_k.add_(d_write).add_((d_diagonal * q).sum_to_size(k.shape))
        return d_q.addcmul_(d_diagonal, k), d_k, d_log_decay
