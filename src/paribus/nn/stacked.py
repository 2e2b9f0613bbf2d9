"""Several linear maps as one matrix, one under the other: of groups of channels, of experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class StackedLinear(nn.Linear):
    """N linear maps D -> E without biases; `weight` [N · E, D] holds them one under the other.

    To initial values, and to optimizers, it is a linear map with D inputs, like each of its maps.
    """

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__(inputs, count * outputs, bias=False)
        self.count = count

    def matrices(self) -> Tensor:
        """[N, E, D]."""
        return self.weight.unflatten(0, (self.count, -1))


class GroupedLinear(StackedLinear):
    """Each group of channels has its own map."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., N · D] -> [..., N · E]."""
        groups = x.flatten(0, -2).unflatten(-1, (self.count, -1)).transpose(0, 1)  # N M D
        y = torch.bmm(groups, self.matrices().transpose(1, 2))
        return y.transpose(0, 1).flatten(1).unflatten(0, x.shape[:-1])


class SortedLinear(StackedLinear):
    """Each run of vectors has its own map."""

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:  # type: ignore[override]  # needs to know the runs
        """[M, D] -> [M, E]; the first sizes[0] vectors go through the first map, and so on."""
        runs = zip(x.split(list(sizes)), self.matrices().unbind(), strict=True)
        return torch.cat([functional.linear(run, weight) for run, weight in runs])
