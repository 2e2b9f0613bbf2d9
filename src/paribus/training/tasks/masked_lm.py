"""Masked language modelling: hidden tokens are the targets; judged by bits per hidden byte."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paribus.data.batches import Batch, TextBatches
from paribus.data.masking import Masking, Scheme
from paribus.data.tokenizers import load_tokenizer
from paribus.evaluation.bits_per_byte import DocumentBits, bits_per_byte
from paribus.evaluation.byte_neighbours import ByteNeighbours, hidden_byte_bits
from paribus.evaluation.masked_bits import RATE, filled_text, hide, masked_document_bits, pseudo_perplexity
from paribus.nn.loss import IGNORE
from paribus.nn.settings import read_settings

from ..task import Inputs, Measure, Quality, TrivialBaseline
from ..text_task import SPLITS, TextTask, documents_hash


class MaskedLM(TextTask):
    """Fill in hidden tokens."""

    metric = "masked_bits_per_byte"

    @dataclass(frozen=True)
    class Objective:
        """What is hidden in training.

        Raises:
            ValueError: a rate that hides nothing or everything.
        """

        mask_rate: float = 0.15
        """The share of each row's tokens."""
        scheme: Scheme = "bert"
        """bert: 80 % of them become the mask token, 10 % a random one, 10 % stay; all_mask: all the mask token."""

        def __post_init__(self) -> None:
            Masking(self.mask_rate, self.scheme)

    @property
    def mask_token(self) -> int:
        """What hides a token."""
        settings = {key: value for key, value in self.config.task.items() if key != "name"}
        return int(read_settings(self.model_class.Config, settings, "task masked_lm").mask_token)

    @cached_property
    def tokenizer(self) -> Any:
        """That of the data."""
        return load_tokenizer(self.data.tokenizer)

    def batches(self, cache: Path) -> TextBatches:
        """Windows of the corpora."""
        name, tokenizer = self.data.tokenizer, self.tokenizer
        if tokenizer.mask_token_id is None:
            raise ValueError(f"data: the tokenizer '{name}' has no mask token, which the task masked_lm needs")
        if self.mask_token != tokenizer.mask_token_id:
            raise ValueError(
                f"model: task: mask_token is {self.mask_token}; that of the tokenizer '{name}' is "
                f"{tokenizer.mask_token_id}"
            )
        if not tokenizer.is_fast:
            raise ValueError(f"data: the tokenizer '{name}' does not say which bytes a token has; a fast one is needed")
        return super().batches(cache)

    def inputs(self, batch: Batch, step: int) -> Inputs:
        """All tokens but the last of a row, as many as causal models read."""
        tokens = batch.tokens[:, :-1]
        segments = None if batch.segments is None else batch.segments[:, :-1]
        may_hide = ~torch.isin(tokens, torch.tensor(self.tokenizer.all_special_ids))
        if segments is not None:
            may_hide &= segments != 0
        masking = Masking(self.objective.mask_rate, self.objective.scheme)
        input_ids, labels = masking(
            tokens,
            may_hide,
            mask_token=self.mask_token,
            vocab_size=len(self.tokenizer),
            seed=self.data.seed,
            step=step,
        )
        tensors = {"input_ids": input_ids, "labels": labels, "attention_mask": segments}
        return Inputs(tensors, (labels != IGNORE).sum(1))

    def example(self) -> dict[str, Tensor]:
        """Zeros, as many of them targets as in a row."""
        tokens = torch.zeros(1, self.sequence_length, dtype=torch.long)
        labels = torch.full_like(tokens, IGNORE)
        labels[:, : max(1, round(self.objective.mask_rate * self.sequence_length))] = 0
        return {"input_ids": tokens, "labels": labels}

    def measure(self, cache: Path) -> Measure:
        """Held-out documents, a part of each hidden."""
        return MaskedTextMeasure(self, cache)

    def baselines(self, orders: tuple[int, ...], steps: int, cache: Path) -> Iterator[TrivialBaseline]:
        """Two predictors of bytes, counted on exactly the bytes that are read; n-grams would see one side only."""
        documents = hide(self.held_out("test", cache), self.tokenizer)
        read = TextBatches(self.data, cache).consumed_bytes(steps)
        model = ByteNeighbours(read)
        for name, neighbours in (("byte frequencies", False), ("both neighbours", True)):
            quality = bits_per_byte(hidden_byte_bits(model, documents, neighbours=neighbours))
            text = f"Witten-Bell interpolated, counted on the {len(read):,} bytes that an arm reads"
            yield TrivialBaseline(name, quality, text)


class MaskedTextMeasure(Measure):
    """Bits per hidden byte of held-out documents, pseudo-perplexity, and a text with its gaps filled."""

    def __init__(self, task: MaskedLM, cache: Path) -> None:
        self.tokenizer = task.tokenizer
        self.sequence_length = task.sequence_length
        documents = {split: task.held_out(split, cache) for split in SPLITS}
        self._sha256 = {split: documents_hash(found) for split, found in documents.items()}
        self.documents = {split: hide(found, self.tokenizer) for split, found in documents.items()}

    @property
    def documents_sha256(self) -> dict[str, str]:
        """By split, a hash of the documents in their order; what is hidden follows from it."""
        return self._sha256

    def validation(self, model: Any) -> float:
        """Bits per hidden byte of the validation documents."""
        return bits_per_byte(self._bits(model, "validation"))

    def quality(self, model: Any) -> Quality:
        """Bits of all documents; a model with infinite bits fills no text."""
        bits = {split: self._bits(model, split) for split in SPLITS}
        scores = {split: {MaskedLM.metric: bits_per_byte(values)} for split, values in bits.items()}
        test = self.documents["test"]
        scores["test"]["pseudo_perplexity"], scored = pseudo_perplexity(model, test, self.sequence_length)
        finite = all(math.isfinite(value) for found in scores.values() for value in found.values())
        return Quality(
            scores=scores,
            documents=[[document.corpus, document.bits, document.num_bytes] for document in bits["test"]],
            sample=filled_text(model, test[0], self.sequence_length, self.tokenizer) if finite else None,
            details={
                "hidden_share": RATE,
                "hidden_tokens": sum(int(document.hidden.sum()) for document in test),
                "hidden_bytes": sum(document.num_bytes for document in bits["test"]),
                "tokens_hidden_alone": scored,
            },
        )

    def _bits(self, model: Any, split: str) -> list[DocumentBits]:
        return masked_document_bits(model, self.documents[split], self.sequence_length)
