"""Causal language modelling: every token but the first is a target; judged by bits per byte.

Trained on prefixes, every token behind a row's prefix is a target (Raffel et al. 2019, arXiv:1910.10683; Tay et al.
2022, arXiv:2205.05131), and a model is judged by the same bits per byte, without any prefix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paribus.data.batches import Batch, TextBatches
from paribus.data.masking import draw
from paribus.data.tokenizers import load_tokenizer
from paribus.evaluation.bits_per_byte import DocumentBits, bits_per_byte, document_bits
from paribus.evaluation.ngram import ngram_document_bits
from paribus.evaluation.sample_text import sample_text
from paribus.nn.loss import IGNORE
from paribus.nn.segments import resolve

from ..run import Run
from ..task import Inputs, Measure, Quality, TrivialBaseline
from ..text_task import SPLITS, TextTask, documents_hash

_PROMPT = "The "
_SAMPLE_TOKENS = 160


class CausalLM(TextTask):
    """Predict the next token."""

    metric = "bits_per_byte"

    @dataclass(frozen=True)
    class Objective:
        """How much of a row is a prefix in training.

        Raises:
            ValueError: a share that leaves no target.
        """

        max_prefix_share: float = 0.0
        """The longest prefix, as a share of the row; each row's length is drawn evenly from 0 to it. 0: no prefixes.
        Documents that are isolated in one row have prefixes of one length."""

        def __post_init__(self) -> None:
            if not 0 <= self.max_prefix_share < 1:
                raise ValueError(
                    f"objective: max_prefix_share is {self.max_prefix_share}; 0 or more and less than 1 is needed"
                )

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        if self.objective.max_prefix_share and not self.config.task.get("prefix", False):
            raise ValueError(
                f"objective: max_prefix_share is {self.objective.max_prefix_share}, which needs the model's "
                "task.prefix true"
            )

    def inputs(self, batch: Batch, step: int) -> Inputs:
        """Inputs are all but the last token of a row, targets all but the first, or all behind the prefix."""
        segments, targets = batch.segments, batch.tokens[:, 1:]
        if segments is not None:  # padding (0) neither is a target nor has one
            targets = targets.masked_fill((segments[:, :-1] == 0) | (segments[:, 1:] == 0), IGNORE)
        tensors: dict[str, Tensor | None] = {
            "input_ids": batch.tokens[:, :-1],
            "targets": targets,
            "attention_mask": None if segments is None else segments[:, :-1],
        }
        if self.objective.max_prefix_share:
            lengths = self.prefix_lengths(len(targets), step)
            positions = resolve(batch.tokens, segments, None).positions[:, 1:]
            targets = targets.masked_fill(positions < lengths[:, None], IGNORE)
            tensors |= {"targets": targets, "prefix_length": lengths}
        return Inputs(tensors, (targets != IGNORE).sum(1))

    def prefix_lengths(self, rows: int, step: int) -> Tensor:
        """[rows] of batch number `step`, decided by it and the seed of the data."""
        longest = int(self.objective.max_prefix_share * self.sequence_length)
        return torch.from_numpy(draw(f"{self.data.seed} prefix {step}".encode(), (rows,)) % (longest + 1))

    def example(self) -> dict[str, Tensor]:
        """Zeros, and a prefix if the run has such: of any length it costs the same."""
        tokens = torch.zeros(1, self.sequence_length, dtype=torch.long)
        prefix = {"prefix_length": torch.ones(1, dtype=torch.long)} if self.objective.max_prefix_share else {}
        return {"input_ids": tokens, "targets": tokens, **prefix}

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
