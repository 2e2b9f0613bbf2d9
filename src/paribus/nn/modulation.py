"""What a row's condition makes of its tokens: shifts, scales and gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Modulation(nn.Module):
    """W silu(c) + a, in `count` vectors."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.weight = nn.Parameter(torch.empty(count * width, width))
        self.bias = nn.Parameter(torch.empty(count * width))

    def forward(self, condition: Tensor | None, like: Tensor) -> tuple[Tensor, ...]:
        """[B, D] -> `count` of [B, 1, D]; of [1, 1, D] where there is no condition."""
        c = like.new_zeros(1, like.shape[-1]) if condition is None else condition.to(like.dtype)
        found = functional.linear(functional.silu(c), self.weight.to(like.dtype), self.bias.to(like.dtype))
        return found[:, None].chunk(self.count, -1)

    def reset_parameters(self) -> None:
        """Zero, whatever the model's rule says of maps: that is the scheme."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
