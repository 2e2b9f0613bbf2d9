"""Token shift: each token beside its neighbour, for mixers that interpolate between the two (RWKV).

The neighbour is the token before in the segment, and zero where there is none. Two-directional it is the mean of the
token before and the token after, so that reading a row backwards gives the same answer backwards.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .kernels.convolution import short_convolution
from .mixer import Context, Mixer, Placement
from .segments import Rows
from .state import State

Kind = Literal["half", "learned"]


class TokenShift(Mixer):
    """What a branch of a block reads in place of its tokens: each token partly replaced by its neighbour.

        half      y = [x_1, …, x_{D/2}, n_{D/2+1}, …, n_D]
        learned   y = x + μ ⊙ (n - x), μ ∈ R^D, which starts at 1/2

    Half is the shift with which RWKV began (Peng Bo 2021), learned is that of Peng et al. 2023, arXiv:2305.13048,
    eq. 11 ff., with one μ for all that the branch computes. Causal, n is the token before.
    """

    def __init__(self, placement: Placement, kind: Kind) -> None:
        super().__init__(placement, None)
        self.share = nn.Parameter(torch.empty(placement.width)) if kind == "learned" else None

    def mix(self, x: Tensor, rows: Rows, state: State, context: Context | None) -> tuple[Tensor, State]:
        """[B, T, D] -> [B, T, D]."""
        neighbour, state = shift_tokens(x, rows=rows, state=state, causal=self.placement.causal)
        if self.share is None:
            own = x.shape[-1] - x.shape[-1] // 2
            return torch.cat([x[..., :own], neighbour[..., own:]], -1), state
        return torch.lerp(x, neighbour, self.share.to(x.dtype)), state

    def reset_parameters(self) -> None:
        """One half of each."""
        if self.share is not None:
            nn.init.constant_(self.share, 0.5)


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
