"""What the tasks on text share: a linear head over the vocabulary."""

from __future__ import annotations

from torch import Tensor, nn

from .config import ParibusConfig
from .projection import Projection
from .task import TaskModel


class LanguageModel(TaskModel):
    """The backbone and a linear head over the vocabulary.

    Tied to an embedding in two factors, the head reads a reduction of the hidden states to the factors' rank.
    """

    reads = "text"
    _tied_weights_keys = {"head.weight": "model.embedding.table.weight"}

    def __init__(self, config: ParibusConfig) -> None:
        super().__init__(config)
        rank = config.embedding["rank"] if config.tie_word_embeddings else 0
        self.reduction = Projection(config.hidden_size, rank) if rank else None
        self.head = nn.Linear(rank or config.hidden_size, config.vocab_size, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the head."""
        self.head = new_embeddings

    def reduced(self, x: Tensor) -> Tensor:
        """What the head reads: [..., D] -> [..., D], or [..., rank]."""
        return x if self.reduction is None else self.reduction(x)
