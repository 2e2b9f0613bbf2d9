"""Trivial baselines of masked language models: hidden bytes from the counts of all, or from the byte on either side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .bits_per_byte import DocumentBits
from .masked_bits import HiddenDocument
from .ngram import Counts


class ByteNeighbours:
    """Witten-Bell interpolation (Witten and Bell 1991) from the uniform distribution to both neighbours of a byte.

        p(b | c) = (count(c b) + types(c) · lower(b)) / (count(c) + types(c))
        lower of b alone: 1 / 256;  of l b and of b r: p(b);  of l b r: (p(b | l) + p(b | r)) / 2

    A neighbour that is hidden too, or lies beyond the document, is not known, and that side is left out.

    Args:
        data: training bytes, uint8 [N], at least three.
    """

    def __init__(self, data: np.ndarray) -> None:
        left, middle, right = (data[start : len(data) - 2 + start].astype(np.uint64) for start in range(3))
        self._alone = _counts(middle)
        self._left = _counts(_pack(left, middle))
        self._right = _counts(_pack(right, middle))
        self._both = _counts(_pack(left, right, middle))

    def bits(self, hidden: HiddenDocument, *, neighbours: bool) -> float:
        """Bits of a document's hidden bytes; without `neighbours`, from the counts of single bytes alone."""
        data = np.frombuffer(hidden.document.content, dtype=np.uint8).astype(np.uint64)
        places = np.flatnonzero(hidden.hidden_bytes)
        b = data[places]
        p = self._alone.interpolate(b, np.full(len(b), 1 / 256))
        if not neighbours:
            return float(-np.log2(p).sum())
        around = np.pad(data, 1)
        known = np.pad(~hidden.hidden_bytes, 1)
        left, right = around[places], around[places + 2]
        has_left, has_right = known[places], known[places + 2]
        from_left = self._left.interpolate(_pack(left, b), p)
        from_right = self._right.interpolate(_pack(right, b), p)
        from_both = self._both.interpolate(_pack(left, right, b), (from_left + from_right) / 2)
        p = np.where(has_left, np.where(has_right, from_both, from_left), np.where(has_right, from_right, p))
        return float(-np.log2(p).sum())


def hidden_byte_bits(
    model: ByteNeighbours, documents: Sequence[HiddenDocument], *, neighbours: bool
) -> list[DocumentBits]:
    """The bits of each document's hidden bytes, and their number."""
    return [
        DocumentBits(hidden.document.corpus, model.bits(hidden, neighbours=neighbours), int(hidden.hidden_bytes.sum()))
        for hidden in documents
    ]


def _counts(grams: np.ndarray) -> Counts:
    return Counts(*np.unique(grams, return_counts=True))


def _pack(*parts: np.ndarray) -> np.ndarray:
    """Bytes side by side as one integer, the last one, which is predicted, in the lowest place."""
    packed = np.zeros(len(parts[0]), dtype=np.uint64)
    for part in parts:
        packed = (packed << np.uint64(8)) | part
    return packed
