"""An explicit matrix over tokens: y[i] = Σ_j W[i, j] x[j], with i and j true positions in the segment.

The matrix is given once for all, or each token brings its own row of it. Its entries are weights, or logits of a
softmax over the positions that a token may read. What lies above the diagonal of a causal matrix is not multiplied:
rows go in blocks, each as long as its last row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..segments import Rows
from ..settings import nearest
from .alignment import Aligned, align, each_segment
from .chunks import full_precision

BLOCK = 128
"""Rows of a causal matrix that are multiplied together."""
ALGORITHMS = ("blocks", "reference")


def mix_tokens(
    x: Tensor,
    matrix: Tensor,
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    softmax: bool = False,
    algorithm: str = "blocks",
) -> tuple[Tensor, Tensor | None]:
    """Mix the tokens of each segment by a matrix for each head.

    Args:
        x: [B, T, H, V].
        matrix: [G, M, M], W[g, i, j] from position j to position i; or [B, T, G, M], the rows of these tokens. G is
            a multiple of H: each head of x goes through G / H matrices. Causal reads j ≤ i only.
        rows: segments and padding of the tokens.
        state: [B, S, H, V], the inputs of the current segment so far (`alignment`); None is no past.
        causal: read the past and the present only.
        softmax: the entries are logits, and each row's weights their softmax over what that row reads.
        algorithm: "blocks", or "reference", token by token in float64.

    Returns:
        y [B, T, G, V], zero at padding, and the state after `x` (None unless causal).

    Raises:
        ValueError: a segment is longer than M, or the algorithm is unknown.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm '{algorithm}'; {nearest(algorithm, ALGORITHMS)}")
    with full_precision(x):
        if algorithm == "reference":
            y, history = _reference(x, matrix, rows, state, causal, softmax)
            return y.to(x.dtype), history.to(x.dtype) if causal else None
        compute = torch.promote_types(x.dtype, torch.float32)
        aligned = align(x, rows, state)
        tokens, matrix = aligned.tokens.to(compute), matrix.to(compute)
        check_length(tokens.shape[1], matrix.shape[-1])
        if rows.plain and state is not None:
            y = _continue(tokens, matrix, rows.positions, softmax)
        elif matrix.dim() == 3 and (not softmax or causal or rows.plain):
            y = aligned.pack(_one_matrix(tokens, matrix, causal, softmax))
        else:
            y = aligned.pack(_own_rows(tokens, matrix, aligned, causal, softmax))
    return y.to(x.dtype), aligned.history if causal else None


def check_length(length: int, bound: int) -> None:
    """Refuse what has no row in a matrix.

    Raises:
        ValueError: `length` is beyond `bound`.
    """
    if length > bound:
        raise ValueError(f"a sequence of {length} tokens is longer than the {bound} of the token matrix")


def at_positions(table: Tensor, rows: Rows) -> Tensor:
    """What a table [G, M] holds for the positions of the tokens, as [B, T, G]; anything at padding."""
    return table[:, rows.positions.clamp(0, table.shape[1] - 1)].permute(1, 2, 0)


def _continue(tokens: Tensor, matrix: Tensor, positions: Tensor, softmax: bool) -> Tensor:
    """The new tokens' own rows suffice: tokens [B, n, H, V] with their history, positions [B, T] -> [B, T, G, V]."""
    n = tokens.shape[1]
    own = matrix[..., :n] if matrix.dim() == 4 else matrix[:, positions, :n].permute(1, 2, 0, 3)  # B T G n
    ahead = torch.arange(n, device=tokens.device) > positions[..., None, None]
    return _product(_weights(own, ahead, softmax), tokens)


def _one_matrix(tokens: Tensor, matrix: Tensor, causal: bool, softmax: bool) -> Tensor:
    """The same matrix for all rows: tokens [R, n, H, V] -> [R, n, G, V]."""
    R, n, H, V = tokens.shape
    G = matrix.shape[0]
    inputs = tokens.permute(2, 1, 0, 3).reshape(H, n, R * V)
    if G > H:
        inputs = inputs.repeat_interleave(G // H, 0)
    if causal:
        y: Tensor = (_TriangularSoftmax if softmax else _Triangular).apply(matrix, inputs)
    else:
        y = _weights(matrix[:, :n, :n], None, softmax) @ inputs
    return y.view(G, n, R, V).permute(2, 1, 0, 3)


def _own_rows(tokens: Tensor, matrix: Tensor, aligned: Aligned, causal: bool, softmax: bool) -> Tensor:
    """Each aligned row has a matrix or a length of its own: tokens [R, n, H, V] -> [R, n, G, V]."""
    n, device = tokens.shape[1], tokens.device
    own = aligned.place(matrix) if matrix.dim() == 4 else matrix[:, :n].transpose(0, 1)[None]  # R n G M
    steps, lengths = torch.arange(n, device=device), None if causal else aligned.lengths()
    outputs = []
    for part, at in zip(own.split(BLOCK, 1), steps.split(BLOCK), strict=True):
        end = int(at[-1]) + 1 if causal else n
        beyond: Tensor | None = None
        if causal:
            beyond = (steps[:end] > at[:, None])[:, None]
        elif lengths is not None:
            beyond = (steps >= lengths[:, None])[:, None, None]
        weights = _weights(part[..., :end], beyond, softmax)
        outputs.append(_product(weights.expand(tokens.shape[0], -1, -1, -1), tokens[:, :end]))
    return torch.cat(outputs, 1)


def _weights(entries: Tensor, beyond: Tensor | None, softmax: bool) -> Tensor:
    """What multiplies the tokens; `beyond` is true where a row does not read."""
    if beyond is not None:
        entries = entries.masked_fill(beyond, -torch.inf if softmax else 0)
    return entries.softmax(-1) if softmax else entries


def _product(weights: Tensor, tokens: Tensor) -> Tensor:
    """Weights [R, i, G, j] and tokens [R, j, H, V] -> [R, i, G, V]."""
    by_head = weights.unflatten(2, (tokens.shape[2], -1))
    return torch.einsum("rihej,rjhv->rihev", by_head, tokens).flatten(2, 3)


class _Triangular(torch.autograd.Function):
    """The lower triangle of a matrix [G, M, M], cut to n x n, times inputs [G, n, C]."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(matrix, x)
        y = torch.empty_like(x)
        for own in _blocks(x.shape[1]):
            torch.bmm(matrix[:, own, own].tril(), x[:, own], out=y[:, own])
            if own.start:
                before = slice(0, own.start)
                torch.baddbmm(y[:, own], matrix[:, own, before], x[:, before], out=y[:, own])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        matrix, x = ctx.saved_tensors
        grad, n = grad.contiguous(), x.shape[1]
        grad_matrix = torch.zeros_like(matrix) if ctx.needs_input_grad[0] else None
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        for own in _blocks(n):
            after, until = slice(own.stop, n), slice(0, own.stop)
            if grad_x is not None:
                torch.bmm(matrix[:, own, own].tril().mT, grad[:, own], out=grad_x[:, own])
                if own.stop < n:
                    torch.baddbmm(grad_x[:, own], matrix[:, after, own].mT, grad[:, after], out=grad_x[:, own])
            if grad_matrix is not None:
                # one matrix at a time, as a batched product does not write into part of the rows without a copy
                for into, above, inputs in zip(grad_matrix[:, own, until], grad[:, own], x[:, until], strict=True):
                    torch.mm(above, inputs.T, out=into)
                grad_matrix[:, own, own].tril_()
        return grad_matrix, grad_x


class _TriangularSoftmax(torch.autograd.Function):
    """The same, each row's weights the softmax of its entries; they are made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        y, log_weight = torch.empty_like(x), x.new_empty(*x.shape[:2], 1)
        for own in _blocks(x.shape[1]):
            logits = _logits(matrix, own)
            torch.logsumexp(logits, 2, keepdim=True, out=log_weight[:, own])
            torch.bmm(logits.sub_(log_weight[:, own]).exp_(), x[:, : own.stop], out=y[:, own])
        ctx.save_for_backward(matrix, x, y, log_weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        matrix, x, y, log_weight = ctx.saved_tensors
        grad_matrix, grad_x = torch.zeros_like(matrix), torch.zeros_like(x)
        mean = (grad * y).sum(2, keepdim=True)
        for own in _blocks(x.shape[1]):
            until, given = slice(0, own.stop), grad[:, own]
            weights = _logits(matrix, own).sub_(log_weight[:, own]).exp_()
            torch.baddbmm(grad_x[:, until], weights.mT, given, out=grad_x[:, until])
            through = torch.bmm(given, x[:, until].mT)
            torch.mul(through.sub_(mean[:, own]), weights, out=grad_matrix[:, own, until])
        return grad_matrix, grad_x


def _logits(matrix: Tensor, own: slice) -> Tensor:
    """A copy of the block's rows, -inf above the diagonal."""
    rows = matrix[:, own, : own.stop].clone()
    size = own.stop - own.start
    ahead = torch.ones(size, size, dtype=torch.bool, device=matrix.device).triu_(1)
    rows[..., own.start :].masked_fill_(ahead, -torch.inf)
    return rows


def _blocks(n: int) -> list[slice]:
    """Where each block of rows lies."""
    return [slice(start, min(n, start + BLOCK)) for start in range(0, n, BLOCK)]


def _reference(
    x: Tensor, matrix: Tensor, rows: Rows, state: Tensor | None, causal: bool, softmax: bool
) -> tuple[Tensor, Tensor]:
    """The definition, segment by segment and position by position, in float64; tokens carry the rows they bring."""
    (H, V), M = x.shape[2:], matrix.shape[-1]
    G = matrix.shape[0] if matrix.dim() == 3 else matrix.shape[2]
    x = x.double().repeat_interleave(G // H, 2)
    own = matrix.double() if matrix.dim() == 4 else x.new_zeros(*x.shape[:3], 0)
    if state is not None:
        state = state.double().repeat_interleave(G // H, 2)
        state = torch.cat([state, state.new_zeros(*state.shape[:3], own.shape[3])], 3)

    def direct(inputs: Tensor) -> Tensor:  # n G V + the rows
        n, steps = len(inputs), []
        check_length(n, M)
        tokens, given = inputs[..., :V], inputs[..., V:]
        # unbind, since the gradient of an index is as large as what it is taken from
        lines = given.unbind(0) if matrix.dim() == 4 else matrix[:, :n].double().unbind(1)
        for i in range(n):
            end = i + 1 if causal else n
            row = lines[i][:, :end]
            row = row.softmax(-1) if softmax else row
            steps.append((row.T[..., None] * tokens[:end]).sum(0))
        return torch.cat([torch.stack(steps), given], 2)

    y, history = each_segment(torch.cat([x, own], 3), rows, state, direct)
    return y[..., :V], history[:, :, :: G // H, :V]
