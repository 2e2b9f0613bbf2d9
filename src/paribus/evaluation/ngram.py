"""The trivial baseline: an interpolated byte n-gram, counted on the bytes that the arms were trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paribus.data.batches import HeldOutDocument

from .bits_per_byte import DocumentBits


class ByteNGram:
    """Witten-Bell interpolation (Witten and Bell 1991), from the uniform distribution to contexts of `order` - 1 bytes.

        p(b | c) = (count(c b) + types(c) · p(b | c without its first byte)) / (count(c) + types(c))

    with types(c) the number of different bytes seen after c. No setting is tuned.

    Args:
        order: bytes of an n-gram, 1 to 8.
        data: training bytes, uint8 [N].
    """

    def __init__(self, order: int, data: np.ndarray) -> None:
        assert 1 <= order <= 8, "a context and its byte are packed in 64 bits"
        self.order = order
        self._tables = [_count(data, length) for length in range(1, order + 1)]

    def bits(self, document: np.ndarray) -> float:
        """Bits of one document, uint8 [N]; contexts do not reach before its beginning."""
        probability = np.full(len(document), 1 / 256)
        for length, table in enumerate(self._tables, start=1):
            usable = slice(length - 1, None)
            if len(document) >= length:
                probability[usable] = table.interpolate(_pack(document, length), probability[usable])
        return float(-np.log2(probability).sum())


class Counts:
    """Counts of n-grams of one length, and of their contexts: all bytes but the last, which lies lowest."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray) -> None:
        self.grams, self.counts = grams, counts
        self.contexts, first = np.unique(grams >> 8, return_index=True)
        self.context_counts = np.add.reduceat(counts, first)
        self.context_types = np.diff(np.append(first, len(grams)))

    def interpolate(self, grams: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """The probability of each n-gram's last byte, given that of the next shorter order."""
        count = _look_up(self.grams, self.counts, grams)
        seen = _look_up(self.contexts, self.context_counts, grams >> 8)
        types = _look_up(self.contexts, self.context_types, grams >> 8)
        return np.where(seen > 0, (count + types * lower) / np.maximum(seen + types, 1), lower)


def _count(data: np.ndarray, length: int) -> Counts:
    return Counts(*np.unique(_pack(data, length), return_counts=True))


def _pack(data: np.ndarray, length: int) -> np.ndarray:
    """Every window of `length` bytes as one integer, the last byte in the lowest place."""
    packed = np.zeros(len(data) - length + 1, dtype=np.uint64)
    for offset in range(length):
        packed = (packed << np.uint64(8)) | data[offset : offset + len(packed)].astype(np.uint64)
    return packed


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where it is absent; `keys` are sorted."""
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def ngram_document_bits(order: int, data: np.ndarray, documents: Sequence[HeldOutDocument]) -> list[DocumentBits]:
    """The bits of each document under a byte n-gram of `order` counted on `data` (uint8 [N])."""
    model = ByteNGram(order, data)
    return [
        DocumentBits(document.corpus, model.bits(np.frombuffer(document.content, dtype=np.uint8)), document.num_bytes)
        for document in documents
    ]
