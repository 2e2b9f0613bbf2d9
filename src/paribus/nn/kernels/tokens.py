"""An explicit matrix over tokens: y[i] = sum_j W[i, j] x[j], with i and j true positions in the segment."""

from __future__ import annotations

import torch
from torch import Tensor

from ..segments import Rows
from .alignment import align, each_segment


def mix_tokens(
    x: Tensor,
    matrix: Tensor,
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    algorithm: str = "matrix",
) -> tuple[Tensor, Tensor | None]:
    """Mix the tokens of each segment by a matrix for each head.

    Args:
        x: [B, T, H, V].
        matrix: [H, M, M], W[h, i, j] from position j to position i; causal reads its lower triangle only.
        rows: segments and padding of the tokens.
        state: [B, S, H, V], the inputs of the current segment so far (`alignment`); None is no past.
        causal: read the past and the present only.
        algorithm: "matrix", or "reference", token by token in float64.

    Returns:
        y [B, T, H, V], zero at padding, and the state after `x` (None unless causal).

    Raises:
        ValueError: a segment is longer than M.
    """
    if algorithm == "reference":

        def direct(inputs: Tensor) -> Tensor:
            return _direct(inputs, matrix.double(), causal)

        y, history = each_segment(x.double(), rows, state, direct)
        return y.to(x.dtype), history.to(x.dtype) if causal else None
    aligned = align(x, rows, state)
    tokens = aligned.tokens.to(torch.promote_types(x.dtype, torch.float32))
    n, bound = tokens.shape[1], matrix.shape[1]
    _check_length(n, bound)
    weight = matrix[:, :n, :n].to(tokens.dtype)
    if rows.plain and state is not None:
        # The new tokens' own rows of the matrix suffice.
        ahead = torch.arange(n, device=x.device) > rows.positions[..., None]
        weight = weight[:, rows.positions].masked_fill(ahead, 0)
        y = torch.einsum("hbij,bjhv->bihv", weight, tokens)
    else:
        y = aligned.pack(torch.einsum("hij,bjhv->bihv", weight.tril() if causal else weight, tokens))
    return y.to(x.dtype), aligned.history if causal else None


def _direct(inputs: Tensor, matrix: Tensor, causal: bool) -> Tensor:
    """The definition, one output after another: inputs [n, H, V]."""
    _check_length(len(inputs), matrix.shape[1])
    steps = []
    for i in range(len(inputs)):
        read = inputs[: i + 1] if causal else inputs
        steps.append((matrix[:, i, : len(read)].T[..., None] * read).sum(0))
    return torch.stack(steps)


def _check_length(length: int, bound: int) -> None:
    if length > bound:
        raise ValueError(f"a sequence of {length} tokens is longer than the {bound} of the token matrix")
