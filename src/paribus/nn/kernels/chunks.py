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

from collections.abc import Callable, Iterator, Mapping, Sequence
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
"""The most tokens in a chunk; a power of two. Half of it where keys are not wider, which is then faster."""


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


def chunk_length(T: int, width: int) -> int:
    """The smallest power of two that holds T tokens, at most `CHUNK`, or half of it for a key width no larger."""
    return min(CHUNK if width > CHUNK else CHUNK // 2, 1 << (T - 1).bit_length())


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
    """The weights inside chunks, as this module's docstring defines them, of queries i and keys j."""

    pairs: list[list[Tensor]]
    """[i][j]: [B, H, N, C, C], lower triangular."""
    read: list[Tensor]
    """[i]: [B, H, N, C, K]."""
    write: list[Tensor]
    """[j]: [B, H, N, C, K]."""
    keep: Tensor
    """[B, H, N, 1 or K, 1]."""


def weigh(queries: list[Tensor], keys: list[Tensor], gates: Gates) -> Weights:
    """The weights of chunked queries and keys, [B, H, N, C, K] each, which share the work on the decays.

    Args:
        gates: of the tokens, not chunked.
    """
    C, k = keys[0].shape[-2], keys[0]
    if gates.log_decay is None:
        pairs = [[(q @ k.mT).tril_() for k in keys] for q in queries]
        weights = Weights(pairs, queries, keys, k.new_ones(*k.shape[:3], 1, 1))
    else:
        decayed = _ScalarDecay if gates.log_decay.shape[-1] == 1 else _ChannelDecay
        keep, *flat = decayed.apply(split(gates.log_decay, C), len(queries), *queries, *keys)
        n, m = len(queries), len(keys)
        pairs = [flat[i * m : (i + 1) * m] for i in range(n)]
        weights = Weights(pairs, flat[n * m : n * m + n], flat[n * m + n :], keep)
    if gates.starts is None:
        return weights
    together = find_together(gates.starts, C)
    return Weights(
        [[torch.where(together.pairs, x, 0) for x in row] for row in weights.pairs],
        [torch.where(together.first, x, 0) for x in weights.read],
        [torch.where(together.last, x, 0) for x in weights.write],
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
    """keep, pairs, reads, writes of n queries and then m keys [..., C, K] under log-decays [..., C, 1]."""

    @staticmethod
    def forward(ctx: Any, log_decay: Tensor, n: int, *tokens: Tensor) -> tuple[Tensor, ...]:
        C, prefix, suffix = log_decay.shape[-2], log_decay.exp(), torch.ones_like(log_decay)
        decay = torch.eye(C, dtype=prefix.dtype, device=prefix.device).repeat(*log_decay.shape[:-2], 1, 1)
        for c, later, earlier in levels(prefix, suffix):
            torch.mul(later, earlier.mT, out=joints(decay, c))
        pairs = [(q @ k.mT).mul_(decay) for q in tokens[:n] for k in tokens[n:]]
        ctx.n, ctx.num_tokens = n, len(tokens)
        ctx.save_for_backward(decay, prefix, suffix, *tokens, *pairs)
        return prefix[..., -1:, :].clone(), *pairs, *_edges(tokens, n, prefix, suffix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_keep: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        decay, prefix, suffix, *saved = ctx.saved_tensors
        n, tokens, pairs = ctx.n, saved[: ctx.num_tokens], saved[ctx.num_tokens :]
        d_pairs, d_edges = grads[: len(pairs)], grads[len(pairs) :]
        d_tokens = _edges(d_edges, n, prefix, suffix)
        d_sums = [(d * x).sum(-1, keepdim=True) for d, x in zip(d_tokens, tokens, strict=True)]
        d_logs = sum(d * p for d, p in zip(d_pairs, pairs, strict=True)).tril_(-1)
        d_prefix = sum(d_sums[:n]).add_(d_logs.sum(-1, keepdim=True)).sub_(d_logs.sum(-2)[..., None])
        d_log_decay = gradient_of_log_decay(d_prefix, sum(d_sums[n:]), d_keep * prefix[..., -1:, :])
        flat, d_flat = ([x.flatten(0, -3) for x in group] for group in (tokens, d_tokens))
        with full_precision(prefix):
            for number, d_pair in enumerate(d_pairs):
                i, j = number // (len(tokens) - n), n + number % (len(tokens) - n)
                d_scores = (d_pair * decay).flatten(0, -3)
                d_flat[i] = torch.baddbmm(d_flat[i], d_scores, flat[j])
                d_flat[j] = torch.baddbmm(d_flat[j], d_scores.mT, flat[i])
        return d_log_decay, None, *(d.unflatten(0, x.shape[:-2]) for d, x in zip(d_flat, tokens, strict=True))


class _ChannelDecay(torch.autograd.Function):
    """keep, pairs, reads, writes of n queries and then m keys [..., C, K] under log-decays [..., C, K].

    Pairs depend on q and k only through q exp(sum) and k exp(-sum), so their gradient of a running sum is
    q ⊙ dq - k ⊙ dk; t = s, where the two are equal, is left out.
    """

    @staticmethod
    def forward(ctx: Any, log_decay: Tensor, n: int, *tokens: Tensor) -> tuple[Tensor, ...]:
        prefix, suffix = log_decay.exp(), torch.ones_like(log_decay)
        pairs = [(q * k).sum(-1).diag_embed() for q in tokens[:n] for k in tokens[n:]]
        for c, later, earlier in levels(prefix, suffix):
            halves_of_tokens = _joined(tokens, n, c, later, earlier)
            for number, x in enumerate(pairs):
                i, j = number // (len(tokens) - n), n + number % (len(tokens) - n)
                joints(x, c).copy_(halves_of_tokens[i] @ halves_of_tokens[j].mT)
        ctx.n = n
        ctx.save_for_backward(log_decay, *tokens)
        return prefix[..., -1, :, None].clone(), *pairs, *_edges(tokens, n, prefix, suffix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_keep: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        log_decay, *tokens = ctx.saved_tensors
        n, m = ctx.n, len(tokens) - ctx.n
        d_pairs, d_edges = grads[: n * m], grads[n * m :]
        prefix, suffix = log_decay.exp(), torch.ones_like(log_decay)
        d_tokens = [torch.zeros_like(x) for x in tokens]
        with full_precision(log_decay):
            for c, later, earlier in levels(prefix, suffix):
                halves_of_tokens = _joined(tokens, n, c, later, earlier)
                for number, d_pair in enumerate(d_pairs):
                    i, j = number // m, n + number % m
                    d_joints = joints(d_pair, c)
                    halves(d_tokens[i], c)[1].addcmul_(product(d_joints, halves_of_tokens[j]), later)
                    halves(d_tokens[j], c)[0].addcmul_(product(d_joints.mT, halves_of_tokens[i]), earlier)
        d_prefix = sum(d * x for d, x in zip(d_tokens[:n], tokens, strict=False))
        for d, x in zip(d_tokens[n:], tokens[n:], strict=True):
            d_prefix.addcmul_(d, x, value=-1)
        d_suffix = torch.zeros_like(prefix)
        for number, (d, x, edge) in enumerate(zip(d_tokens, tokens, _edges(d_edges, n, prefix, suffix), strict=True)):
            (d_prefix if number < n else d_suffix).addcmul_(edge, x)
            d.add_(edge)
        for number, d_pair in enumerate(d_pairs):
            i, j = number // m, n + number % m
            d_diagonal = d_pair.diagonal(dim1=-2, dim2=-1)[..., None]
            d_tokens[i].addcmul_(d_diagonal, tokens[j])
            d_tokens[j].addcmul_(d_diagonal, tokens[i])
        d_log_decay = gradient_of_log_decay(d_prefix, d_suffix, d_keep.mT * prefix[..., -1:, :])
        return d_log_decay, None, *d_tokens


def _edges(tokens: Sequence[Tensor], n: int, prefix: Tensor, suffix: Tensor) -> list[Tensor]:
    """n queries decayed from the chunk's beginning, and keys to its end."""
    return [x * (prefix if i < n else suffix) for i, x in enumerate(tokens)]


def _joined(tokens: Sequence[Tensor], n: int, c: int, later: Tensor, earlier: Tensor) -> list[Tensor]:
    """n queries of second halves of 2c tokens decayed from where the halves meet, and keys of first halves to there."""
    return [halves(x, c)[1] * later if i < n else halves(x, c)[0] * earlier for i, x in enumerate(tokens)]
