"""Causal language modelling: every token but the first is a target; judged by bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paribus.data.batches import Batch, TextBatches
from paribus.data.tokenizers import load_tokenizer
from paribus.evaluation.bits_per_byte import DocumentBits, bits_per_byte, document_bits
from paribus.evaluation.ngram import ngram_document_bits
from paribus.evaluation.sample_text import sample_text
from paribus.nn.loss import IGNORE

from ..task import Inputs, Measure, Quality, TrivialBaseline
from ..text_task import SPLITS, TextTask, documents_hash

_PROMPT = "The "
_SAMPLE_TOKENS = 160


class CausalLM(TextTask):
    """Predict the next token."""

    metric = "bits_per_byte"

    @dataclass(frozen=True)
    class Objective:
        """No settings."""

    def inputs(self, batch: Batch, step: int) -> Inputs:
        """Inputs are all but the last token of a row, targets all but the first."""
        segments, targets = batch.segments, batch.tokens[:, 1:]
        if segments is not None:  # padding (0) neither is a target nor has one
            targets = targets.masked_fill((segments[:, :-1] == 0) | (segments[:, 1:] == 0), IGNORE)
        tensors = {
            "input_ids": batch.tokens[:, :-1],
            "targets": targets,
            "attention_mask": None if segments is None else segments[:, :-1],
        }
        return Inputs(tensors, (targets != IGNORE).sum(1))

    def example(self) -> dict[str, Tensor]:
        """Zeros."""
        tokens = torch.zeros(1, self.sequence_length, dtype=torch.long)
        return {"input_ids": tokens, "targets": tokens}

    def measure(self, cache: Path) -> Measure:
        """Held-out documents."""
        return TextMeasure(self, cache)

    def baselines(self, orders: tuple[int, ...], steps: int, cache: Path) -> Iterator[TrivialBaseline]:
        """Byte n-grams counted on exactly the bytes that are read."""
        documents = self.held_out("test", cache)
        read = TextBatches(self.data, cache).consumed_bytes(steps)
        for order in orders:
            quality = bits_per_byte(ngram_document_bits(order, read, documents))
            text = f"Witten-Bell interpolated, counted on the {len(read):,} bytes that an arm reads"
            yield TrivialBaseline(f"byte {order}-gram", quality, text)


class TextMeasure(Measure):
    """Bits per byte of held-out documents, and a text that the model writes."""

    def __init__(self, task: CausalLM, cache: Path) -> None:
        self.seed = task.run.seed
        self.sequence_length = task.sequence_length
        self.tokenizer = load_tokenizer(task.data.tokenizer)
        self.documents = {split: task.held_out(split, cache) for split in SPLITS}

    @property
    def documents_sha256(self) -> dict[str, str]:
        """By split, a hash of the documents in their order."""
        return {split: documents_hash(documents) for split, documents in self.documents.items()}

    def validation(self, model: Any) -> float:
        """Bits per byte on the validation documents."""
        return bits_per_byte(self._bits(model, "validation"))

    def quality(self, model: Any) -> Quality:
        """Bits of all documents; a model with infinite bits writes no sample."""
        bits = {split: self._bits(model, split) for split in self.documents}
        scores = {split: {"bits_per_byte": bits_per_byte(values)} for split, values in bits.items()}
        finite = all(math.isfinite(value["bits_per_byte"]) for value in scores.values())
        return Quality(
            scores=scores,
            documents=[[document.corpus, document.bits, document.num_bytes] for document in bits["test"]],
            sample=sample_text(model, self.tokenizer, _PROMPT, _SAMPLE_TOKENS, self.seed) if finite else None,
        )

    def _bits(self, model: Any, split: str) -> list[DocumentBits]:
        return document_bits(model, self.documents[split], self.sequence_length, self.tokenizer.eos_token_id)
