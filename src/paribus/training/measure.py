"""What is measured on the model of a run: along the way on validation documents, at its end on test documents too."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from paribus.data.batches import HeldOutDocument, held_out
from paribus.data.tokenizers import load_tokenizer
from paribus.evaluation.bits_per_byte import DocumentBits, bits_per_byte, document_bits
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

from .run import Run

UNMEASURED = {"bits_per_byte": None, "documents": None, "sample": None}
"""The quality of a run that diverged."""
_PROMPT = "The "
_SAMPLE_TOKENS = 160


class Measure:
    """The held-out documents of a run and what to ask of a model there."""

    def __init__(self, run: Run, cache: Path) -> None:
        self.run = run
        self.tokenizer = load_tokenizer(run.data.tokenizer)
        self.documents = {split: self._documents(split, cache) for split in ("validation", "test")}

    def _documents(self, split: str, cache: Path) -> list[HeldOutDocument]:
        settings = self.run.evaluation
        return held_out(self.run.data, split, cache, settings.num_documents(split), settings.max_bytes_per_document)

    @property
    def documents_sha256(self) -> dict[str, str]:
        """By split, a hash of the documents in their order."""
        return {split: _hash(documents) for split, documents in self.documents.items()}

    def validation(self, model: ParibusForCausalLM) -> float:
        """Bits per byte on the validation documents."""
        return bits_per_byte(self._bits(model, "validation"))

    def quality(self, model: ParibusForCausalLM) -> dict[str, Any]:
        """What result.json says of how good the trained model is; a model with infinite bits writes no sample."""
        bits = {split: self._bits(model, split) for split in self.documents}
        scores = {split: bits_per_byte(values) for split, values in bits.items()}
        finite = all(map(math.isfinite, scores.values()))
        return {
            "bits_per_byte": scores,
            "documents": [[document.corpus, document.bits, document.num_bytes] for document in bits["test"]],
            "sample": sample_text(model, self.tokenizer, _PROMPT, _SAMPLE_TOKENS, self.run.seed) if finite else None,
        }

    def _bits(self, model: ParibusForCausalLM, split: str) -> list[DocumentBits]:
        return document_bits(model, self.documents[split], self.run.data.sequence_length, self.tokenizer.eos_token_id)


def _hash(documents: Sequence[HeldOutDocument]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(document.content).digest())
    return digest.hexdigest()


@torch.no_grad()
def sample_text(model: Any, tokenizer: Any, prompt: str, num_tokens: int, seed: int) -> str:
    """Text that continues `prompt`, sampled at temperature 0.8 from the 40 likeliest tokens, the same for one seed.

    The prompt and `num_tokens` more, or as many as the model may read.

    Raises:
        ValueError: the prompt fills all the positions of the model.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids = torch.tensor([tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id]], device=device)
    room = model.config.max_position_embeddings - ids.shape[1]
    if room < 1:
        raise ValueError(
            f"the prompt has {ids.shape[1]} tokens; the model reads {model.config.max_position_embeddings}"
        )
    num_tokens = min(num_tokens, room)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output = model.generate(ids, max_new_tokens=num_tokens, do_sample=True, temperature=0.8, top_k=40)
    model.train(was_training)
    return tokenizer.decode(output[0], skip_special_tokens=True)
