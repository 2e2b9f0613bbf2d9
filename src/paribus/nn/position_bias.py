"""Learned biases of attention's scores: a number for each head and each signed distance t − s in true positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RelativeBias(nn.Module):
    """Scores + b[bucket(t − s), h], a learned table, buckets widening with distance (T5; arXiv:1910.10683).

    The nearer half of a side's buckets hold one distance each, the others what is equal by its logarithm up to
    `max_distance`; whatever is farther is in the last. With two directions each side has half of the buckets
    (Raffel et al. 2019; the published code was read, nothing was copied).

    Raises:
        ValueError: not two buckets a side, or a `max_distance` that the buckets of one distance reach already.
    """

    def __init__(self, causal: bool, num_heads: int, num_buckets: int, max_distance: int) -> None:
        super().__init__()
        sides = 1 if causal else 2
        if num_buckets < 2 * sides or num_buckets % sides:
            raise ValueError(f"num_buckets is {num_buckets}; {sides} times two or more are needed")
        self.causal = causal
        self.max_distance = max_distance
        self.num_each = num_buckets // sides
        if max_distance <= self.num_each // 2:
            raise ValueError(f"max_distance is {max_distance}; more than {self.num_each // 2} is needed")
        self.table = nn.Parameter(torch.empty(num_buckets, num_heads))

    def forward(self) -> Tensor:
        """[H, R + 1], for distances 0 … R = `max_distance`; [H, 2 R + 1], for −R … R, with two directions."""
        return self.table[self.buckets(self.table.device)].transpose(0, 1)

    def buckets(self, device: torch.device) -> Tensor:
        """The bucket of each of these distances; computed in float32, as T5 does."""
        n, alone = self.num_each, self.num_each // 2
        lowest = 0 if self.causal else -self.max_distance
        distance = torch.arange(lowest, self.max_distance + 1, device=device)
        far = (distance.abs().clamp(min=alone).float() / alone).log() / math.log(self.max_distance / alone)
        shared = (alone + (far * (n - alone)).long()).clamp(max=n - 1)
        bucket = torch.where(distance.abs() < alone, distance.abs(), shared)
        return bucket + n * (distance < 0)

    def reset_parameters(self) -> None:
        """Normal, std 0.02, so that all distances begin nearly alike."""
        nn.init.normal_(self.table, std=0.02)


class ToeplitzBias(nn.Module):
    """Scores + b[h, t − s], a learned number for each distance (Ke et al. 2020, arXiv:2006.15595).

    Distances of `reach` and more have the number of the farthest one before it (clipped, as Shaw et al. 2018,
    arXiv:1803.02155).
    """

    def __init__(self, causal: bool, num_heads: int, reach: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(num_heads, reach if causal else 2 * reach - 1))

    def forward(self) -> Tensor:
        """[H, R + 1], for distances 0 … R = `reach` − 1; [H, 2 R + 1], for −R … R, with two directions."""
        return self.table

    def reset_parameters(self) -> None:
        """Zeros: it begins as attention without positions."""
        nn.init.zeros_(self.table)


BIASES: dict[str, type[nn.Module]] = {"relative_bias": RelativeBias, "toeplitz": ToeplitzBias}
