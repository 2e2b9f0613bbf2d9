"""Batches as a pure function of (settings, step): the arms of a study read the same tokens in the same order.

1. Each corpus is a stream of tokens, cut into windows of T + 1 tokens whose starts are T apart.
2. In epoch e, the windows of a corpus are visited in a permutation drawn from (seed, corpus, e).
3. Sequences are dealt in blocks of 1,024. A block has round(share · 1,024) places of each corpus, in an
   order drawn from (seed, block). So the mixture is exact, and a sequence's window follows from its number.
4. Batch t is the sequences t · batch_size and following.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .corpus import prepare
from .local import STREAM
from .order import permutation
from .shards import Shards
from .tokenizers import BYTES, encode, fingerprint, load_tokenizer
from .tokens import TokenStream, tokenized

BLOCK = 1_024


@dataclass(frozen=True)
class Data:
    """What a run reads.

    Raises:
        ValueError: no corpus, or a number that is not positive.
    """

    corpora: dict[str, float]
    """Corpus (name, path, hf:NAME or stream:NAME) -> weight; a corpus's share is its weight over the sum."""
    tokenizer: str = BYTES
    sequence_length: int = 256
    """Tokens of one sequence."""
    batch_size: int = 16
    """Sequences of one batch."""
    seed: int = 0
    """Decides the order, and nothing else."""
    isolate_documents: bool = False
    """Number the documents in a sequence as segments, so that they do not see one another."""

    def __post_init__(self) -> None:
        if not self.corpora:
            raise ValueError("data: corpora is empty; name at least one")
        for name, weight in self.corpora.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"data: the weight of corpus '{name}' is {weight}; a positive number is needed")
        for key in ("sequence_length", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"data: {key} is {getattr(self, key)}; at least 1 is needed")


@dataclass(frozen=True)
class Batch:
    """The tokens of one step: inputs are all but the last of a row, targets all but the first."""

    tokens: Tensor
    """int64 [B, T + 1]."""
    segments: Tensor | None
    """int64 [B, T + 1]: the documents of a row, numbered from 1; None when documents are not isolated."""
    counts: dict[str, int]
    """Sequences of each corpus."""


class TextBatches:
    """All batches of a run, read from prepared corpora.

    Attributes:
        vocab_size: ids are smaller than this.

    Raises:
        ValueError: a corpus that cannot be prepared, is shorter than a sequence, or whose share is too small.
    """

    def __init__(self, data: Data, cache: Path) -> None:
        self.data = data
        self.tokenizer = load_tokenizer(data.tokenizer)
        self.vocab_size = len(self.tokenizer)
        # Sorted, so that the order in which a mixture is written down changes nothing.
        self.names = sorted(data.corpora)
        self.corpora = {name: prepare(name, cache) for name in self.names}
        self.shards = {
            name: Shards(name, self.tokenizer, data.sequence_length, data.seed, cache)
            for name in self.names
            if name.startswith(STREAM)
        }
        self.streams = {
            name: tokenized(corpus, "train", self.tokenizer, cache / "tokens")
            for name, corpus in self.corpora.items()
            if name not in self.shards
        }
        self.windows = {name: self._count_windows(name) for name in self.streams}
        self.places = apportion(data.corpora, BLOCK)
        for name, places in self.places.items():
            if places == 0:
                raise ValueError(f"data: the share of corpus '{name}' is below 1 in {BLOCK}, too small to be read")
        self._block_order = lru_cache(maxsize=2)(self._draw_block_order)
        self._epoch_order = lru_cache(maxsize=2 * len(self.names))(self._draw_epoch_order)

    def batch(self, step: int) -> Batch:
        """Batch number `step`, from 0; it depends on nothing but the settings and the texts."""
        first = step * self.data.batch_size
        places = [self.window(number) for number in range(first, first + self.data.batch_size)]
        tokens = np.stack([self._tokens(*place) for place in places])
        segments = np.stack([self._documents(*place) for place in places]) if self.data.isolate_documents else None
        return Batch(
            tokens=torch.from_numpy(tokens.astype(np.int64)),
            segments=None if segments is None else torch.from_numpy(segments),
            counts={name: sum(name == chosen for chosen, _ in places) for name in self.names},
        )

    def window(self, number: int) -> tuple[str, int]:
        """The corpus of sequence `number`, and which of the corpus's windows it is (of a stream: which visit)."""
        block, place = divmod(number, BLOCK)
        order = self._block_order(block)
        chosen = order[place]
        name = self.names[chosen]
        index = block * self.places[name] + int((order[:place] == chosen).sum())
        if name in self.shards:
            return name, index
        epoch, visit = divmod(index, self.windows[name])
        return name, int(self._epoch_order(name, epoch)[visit])

    def digest(self, batch: Batch) -> str:
        """A short hash of a batch's tokens."""
        return hashlib.sha256(batch.tokens.numpy().tobytes()).hexdigest()[:16]

    def epochs_at(self, step: int) -> dict[str, float]:
        """How often each corpus has been read after `step` steps."""
        block, place = divmod(step * self.data.batch_size, BLOCK)
        order = self._block_order(block)[:place]
        read = {name: block * self.places[name] + int((order == index).sum()) for index, name in enumerate(self.names)}
        return {
            name: self.shards[name].epochs(visits) if name in self.shards else visits / self.windows[name]
            for name, visits in read.items()
        }

    def manifests(self) -> dict[str, Any]:
        """What identifies the data, for the run's record: JSON."""
        corpora = {
            name: {
                "sha256": corpus.manifest_hash,
                **{key: corpus.manifest[key] for key in ("version", "licence", "splits")},
            }
            for name, corpus in self.corpora.items()
        }
        return {"tokenizer": fingerprint(self.tokenizer), "corpora": corpora}

    def consumed_bytes(self, steps: int) -> np.ndarray:
        """The text of the first `steps` batches, uint8 [bytes]; 0xFF (in no UTF-8) ends a document."""
        end = self.tokenizer.eos_token.encode()
        rows = [row for step in range(steps) for row in self.batch(step).tokens[:, :-1].numpy()]
        if self.data.tokenizer == BYTES:
            return np.concatenate(rows).astype(np.uint8)
        texts = [text.encode().replace(end, b"\xff") for text in self.tokenizer.batch_decode(rows)]
        return np.frombuffer(b"".join(texts), dtype=np.uint8)

    def _count_windows(self, name: str) -> int:
        tokens, needed = len(self.streams[name].ids), self.data.sequence_length + 1
        if tokens < needed:
            raise ValueError(
                f"corpus '{name}' has {tokens} training tokens; one sequence needs {needed} (sequence_length + 1)"
            )
        return (tokens - 1) // self.data.sequence_length

    def _place(self, name: str, window: int) -> tuple[TokenStream, int]:
        """The stream that a window is in, and where it begins there."""
        if name in self.shards:
            return self.shards[name].place(window)
        return self.streams[name], window * self.data.sequence_length

    def _tokens(self, name: str, window: int) -> np.ndarray:
        """The ids of a window: [T + 1]."""
        stream, start = self._place(name, window)
        return stream.ids[start : start + self.data.sequence_length + 1]

    def _documents(self, name: str, window: int) -> np.ndarray:
        """The number, within the window, of the document that each token belongs to: [T + 1]."""
        stream, start = self._place(name, window)
        positions = np.arange(start, start + self.data.sequence_length + 1)
        document = np.searchsorted(stream.offsets, positions, side="right")
        return document - document[0] + 1

    def _draw_block_order(self, block: int) -> np.ndarray:
        corpora = np.repeat(np.arange(len(self.names)), [self.places[name] for name in self.names])
        return corpora[permutation(BLOCK, self.data.seed, "mixture", block)]

    def _draw_epoch_order(self, name: str, epoch: int) -> np.ndarray:
        return permutation(self.windows[name], self.data.seed, f"corpus {name}", epoch)


@dataclass(frozen=True)
class HeldOutDocument:
    """One document of a validation or test split."""

    corpus: str
    tokens: np.ndarray
    """Ids [tokens], without an end of text at either end."""
    content: bytes
    """The same as UTF-8."""

    @property
    def num_bytes(self) -> int:
        """What bits are divided by for bits per byte."""
        return len(self.content)


def held_out(
    data: Data, split: str, cache: Path, max_documents: int, max_bytes_per_document: int
) -> list[HeldOutDocument]:
    """Documents of a held-out split, apportioned over the corpora by weight (one of each at least).

    Which ones is decided by their hash. A longer document is cut at the last whole character within
    `max_bytes_per_document`. A corpus with fewer documents than its part gives all it has.

    Raises:
        ValueError: unknown split, or a corpus that cannot be prepared.
    """
    tokenizer = load_tokenizer(data.tokenizer)
    found = []
    for name, places in apportion(data.corpora, max_documents).items():
        documents = sorted(prepare(name, cache).documents(split), key=lambda text: hashlib.sha256(text).digest())
        chosen = documents[: max(1, places)]
        cut = [text[:max_bytes_per_document].decode("utf-8", errors="ignore").encode() for text in chosen]
        found += [HeldOutDocument(name, ids, text) for ids, text in zip(encode(tokenizer, cut), cut, strict=True)]
    return found


def apportion(weights: Mapping[str, float], places: int) -> dict[str, int]:
    """Share `places` out by weight, largest remainders first; sorted by name."""
    total = sum(weights.values())
    exact = {name: weights[name] / total * places for name in sorted(weights)}
    shares = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: places - sum(shares.values())]:
        shares[name] += 1
    return shares
