"""Matrices along one axis of the positions, folded: position i = a P + b, in column b of row a.

    column:  y[a, b] = Σ_{c ≤ a} W[a, c] x[c, b]          all that lie a multiple of P back
    row:     y[a, b] = Σ_{c ≤ b} W[b, c] x[a, c]          the row so far
    window:  y[a, b] = Σ_{c ≤ b} W[b, c] x[a, c] + Σ_{c > b} W[b, c] x[a−1, c]          the last P tokens

In two directions the conditions fall; then a window reads c > b from its own row if that is the first. What a
triangular map leaves unused is thus, in a window, the weights of the row before. A column map and a window behind it
read every token of the past on exactly one way, a column map and a row map only those at or left of the own column.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..segments import Rows
from ..settings import nearest
from .alignment import align, each_segment
from .chunks import full_precision
from .tokens import check_length

Axis = Literal["column", "row", "window"]
ALGORITHMS = ("folded", "reference")


def mix_axis(
    x: Tensor,
    matrix: Tensor,
    axis: Axis,
    *,
    period: int,
    longest: int,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    algorithm: str = "folded",
) -> tuple[Tensor, Tensor | None]:
    """Mix the tokens of each segment along one axis of their folded positions, with a matrix for each head.

    Args:
        x: [B, T, H, V].
        matrix: [H, A, A] for columns, A ≥ longest / period; [H, P, P] for rows and windows.
        axis: which tokens a token reads.
        period: P.
        longest: the longest segment.
        rows: segments and padding of the tokens.
        state: [B, S, H, V], the inputs of the current segment so far (`alignment`); None is no past.
        causal: read the past and the present only.
        algorithm: "folded", or "reference", by the whole matrix in float64.

    Returns:
        y [B, T, H, V], zero at padding, and the state after `x` (None unless causal).

    Raises:
        ValueError: a segment is longer than `longest`, or the algorithm is unknown.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm '{algorithm}'; {nearest(algorithm, ALGORITHMS)}")
    with full_precision(x):
        if algorithm == "reference":

            def direct(inputs: Tensor) -> Tensor:
                check_length(len(inputs), longest)
                whole = whole_matrix(matrix.double(), axis, len(inputs), period, causal)
                return torch.einsum("hij,jhv->ihv", whole, inputs)

            y, history = each_segment(x.double(), rows, state, direct)
            return y.to(x.dtype), history.to(x.dtype) if causal else None
        compute = torch.promote_types(x.dtype, torch.float32)
        aligned = align(x, rows, state)
        tokens, matrix = aligned.tokens.to(compute), matrix.to(compute)
        check_length(tokens.shape[1], longest)
        if rows.plain and state is not None:
            y = _continue(tokens, matrix, axis, rows.positions, period)
        else:
            y = aligned.pack(_folded(tokens, matrix, axis, period, causal))
    return y.to(x.dtype), aligned.history if causal else None


def whole_matrix(matrix: Tensor, axis: Axis, length: int, period: int, causal: bool) -> Tensor:
    """The definition: the matrix [H, n, n] over all positions that `matrix` stands for."""
    steps = torch.arange(length, device=matrix.device)
    a, b = steps // period, steps % period
    row, column, other_row, other_column = a[:, None], b[:, None], a[None], b[None]
    if axis == "column":
        read = (column == other_column) & ((other_row <= row) | (not causal))
        entries = matrix[:, row, other_row]
    else:
        read = (row == other_row) & ((other_column <= column) | (axis == "row" and not causal))
        if axis == "window":
            read |= (other_row == row - 1) & (other_column > column)
            read |= (row == 0) & (other_row == 0) & (not causal)
        entries = matrix[:, column, other_column]
    return entries * read


def _folded(tokens: Tensor, matrix: Tensor, axis: Axis, period: int, causal: bool) -> Tensor:
    """tokens [R, n, H, V] -> [R, n, H, V]."""
    n = tokens.shape[1]
    folded = functional.pad(tokens, (0, 0, 0, 0, 0, -n % period)).unflatten(1, (-1, period))  # R A P H V
    if axis == "column":
        A = folded.shape[1]
        used = matrix[:, :A, :A]
        y = torch.einsum("hac,rcbhv->rabhv", used.tril() if causal else used, folded)
    elif axis == "row":
        y = torch.einsum("hbc,rachv->rabhv", matrix.tril() if causal else matrix, folded)
    else:
        first = torch.zeros_like(folded[:, :1]) if causal else folded[:, :1]
        before = torch.cat([first, folded[:, :-1]], 1)
        both = torch.cat([matrix.tril(), matrix.triu(1)], 2)  # H P 2P
        y = torch.einsum("hbc,rachv->rabhv", both, torch.cat([folded, before], 2))
    return y.flatten(1, 2)[:, :n]


def _continue(tokens: Tensor, matrix: Tensor, axis: Axis, positions: Tensor, period: int) -> Tensor:
    """The new tokens read only what they need: tokens [B, n, H, V] with their history, positions [B, T]."""
    a, b = (positions // period)[..., None], (positions % period)[..., None]
    if axis == "column":
        others = torch.arange(-(-tokens.shape[1] // period), device=tokens.device)
        places, own = others * period + b, a
    else:
        others = torch.arange(period, device=tokens.device)
        places, own = (a - (others > b).long() if axis == "window" else a) * period + others, b
    read = (places >= 0) & (places <= positions[..., None])  # B T K
    weights = torch.where(read, matrix[:, own, others], 0)  # H B T K
    batch = torch.arange(tokens.shape[0], device=tokens.device)[:, None, None]
    return torch.einsum("hbtk,btkhv->bthv", weights, tokens[batch, places.clamp(0, tokens.shape[1] - 1)])
