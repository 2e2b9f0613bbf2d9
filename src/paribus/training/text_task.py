"""What the tasks on text share: windows of corpora to train on, whole documents to be judged on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paribus.data.batches import Data, HeldOutDocument, TextBatches, held_out

from .task import Task

SPLITS = ("validation", "test")


class TextTask(Task):
    """A task that reads text."""

    @property
    def data(self) -> Data:
        """The text that is read."""
        assert isinstance(self.run.data, Data), "checked in Task"
        return self.run.data

    @property
    def sequence_length(self) -> int:
        """As the data says."""
        return self.data.sequence_length

    @property
    def arguments(self) -> dict[str, Any]:
        """No logits are kept."""
        return {"return_logits": False, "z_loss": self.run.z_loss}

    def batches(self, cache: Path) -> TextBatches:
        """Windows of the corpora."""
        batches = TextBatches(self.data, cache)
        if self.config.vocab_size < batches.vocab_size:
            raise ValueError(
                f"model: vocab_size is {self.config.vocab_size}; the tokenizer '{self.data.tokenizer}' has "
                f"{batches.vocab_size} tokens"
            )
        return batches

    def held_out(self, split: str, cache: Path) -> list[HeldOutDocument]:
        """The documents of a split that the run is measured on."""
        settings = self.run.evaluation
        return held_out(self.data, split, cache, settings.num_documents(split), settings.max_bytes_per_document)


def documents_hash(documents: Sequence[HeldOutDocument]) -> str:
    """SHA-256 of documents in their order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(document.content).digest())
    return digest.hexdigest()
