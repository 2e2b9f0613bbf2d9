"""The split of an image follows from its content, in the promised shares."""

from __future__ import annotations

from collections import Counter

import numpy as np

from paribus.data.images.splits import SPLITS, pixel_hash, split_of


def test_the_shares_are_70_10_and_20_percent() -> None:
    counts = Counter(split_of(f"key {number}") for number in range(20_000))
    assert set(counts) == set(SPLITS)
    for split, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        assert abs(counts[split] / 20_000 - share) < 0.01  # three standard errors


def test_splits_never_change() -> None:
    black = pixel_hash(np.zeros((2, 2, 3), dtype=np.uint8))
    assert black == "93d26e15f25c34326afa2530eafd75b42fc2442dc49b7398a0d9987cfc9c573a"
    assert [split_of(f"{number}") for number in range(12)] == [
        "train",
        "train",
        "train",
        "train",
        "test",
        "train",
        "validation",
        "validation",
        "train",
        "test",
        "train",
        "train",
    ]


def test_the_hash_tells_shapes_and_pixels_apart_and_not_layouts() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert pixel_hash(pixels) != pixel_hash(pixels.reshape(4, 2, 3))
    assert pixel_hash(pixels) != pixel_hash(pixels + np.uint8(1))
    assert pixel_hash(pixels) == pixel_hash(np.asfortranarray(pixels))
