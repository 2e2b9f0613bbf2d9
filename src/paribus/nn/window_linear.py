"""A linear map of each token's window of a few tokens: a full convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .kernels.convolution import dense_convolution
from .segments import Rows


class WindowLinear(nn.Linear):
    """A convolution without bias, every output channel from every input channel of a few tokens.

    To initial values, and to optimizers, it is a linear map of what an output sees: `weight` is
    [F, taps · E / num_groups].

    Args:
        taps: how many tokens an output sees, its own included.
        num_groups: into how many groups the channels are cut, each of which sees only itself.
    """

    def __init__(self, inputs: int, outputs: int, taps: int, causal: bool, num_groups: int = 1) -> None:
        super().__init__(taps * inputs // num_groups, outputs, bias=False)
        self.taps = taps
        self.causal = causal
        self.num_groups = num_groups

    def forward(self, x: Tensor, rows: Rows, state: Tensor | None) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """[B, T, E] -> [B, T, F], zero at padding, and the last taps - 1 inputs (None unless causal)."""
        weight = self.weight.unflatten(1, (self.taps, -1))
        if self.num_groups == 1:
            return dense_convolution(x, weight, rows=rows, state=state, causal=self.causal)
        states = [None] * self.num_groups if state is None else state.chunk(self.num_groups, -1)
        groups = zip(x.chunk(self.num_groups, -1), weight.chunk(self.num_groups), states, strict=True)
        results = [dense_convolution(x, w, rows=rows, state=s, causal=self.causal) for x, w, s in groups]
        kept = [last for _, last in results if last is not None]
        return torch.cat([y for y, _ in results], -1), torch.cat(kept, -1) if kept else None
