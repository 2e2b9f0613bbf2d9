"""Token shift: each token beside its neighbour, for mixers that interpolate between the two (RWKV).

The neighbour is the token before in the segment, and zero where there is none. Two-directional it is the mean of the
token before and the token after, so that reading a row backwards gives the same answer backwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels.convolution import short_convolution
from .segments import Rows


def shift_tokens(x: Tensor, *, rows: Rows, state: Tensor | None, causal: bool) -> tuple[Tensor, Tensor | None]:
    """The neighbour of every token.

    Args:
        x: [B, T, D].
        rows: segments and padding of the tokens; padding is skipped.
        state: [B, 1, D], the last token of the current segment; None is no past.
        causal: the neighbour is the token before.

    Returns:
        [B, T, D], zero at padding, and the state after `x` (None unless causal).
    """
    if rows.plain and causal:
        first = torch.zeros_like(x[:, :1]) if state is None else state.to(x.dtype)
        return torch.cat([first, x[:, :-1]], 1), x[:, -1:].clone()
    taps = x.new_tensor([1.0, 0.0] if causal else [0.5, 0.0, 0.5]).expand(x.shape[2], -1)
    return short_convolution(x, taps, rows=rows, state=state, causal=causal)
