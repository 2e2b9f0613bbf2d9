"""Token embeddings: ids [B, T] -> vectors [B, T, D], and what of them a tied head shares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from .projection import Projection


@dataclass(frozen=True)
class EmbeddingConfig:
    """How token ids become vectors.

    Raises:
        ValueError: a negative rank.
    """

    rank: int = 0
    """0: one table [V, D]. Else a table [V, rank] and a map from rank to D (Lan et al. 2020, arXiv:1909.11942)."""
    scale: Literal["none", "sqrt_width"] = "none"
    """sqrt_width: vectors are multiplied by √D (Vaswani et al. 2017, arXiv:1706.03762, section 3.4)."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"embedding: rank is {self.rank}; 0 (no factors) or more is needed")


class Embedding(nn.Module):
    """scale · W_up table[id]; plainly table[id] by default."""

    def __init__(self, vocab_size: int, width: int, config: EmbeddingConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, config.rank or width)
        self.up = Projection(config.rank, width) if config.rank else None
        self.scale = math.sqrt(width) if config.scale == "sqrt_width" else 1.0

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, D]."""
        x: Tensor = self.table(ids)
        if self.up is not None:
            x = self.up(x)
        return x if self.scale == 1.0 else x * self.scale
