"""Which split an image belongs to, decided by nothing but its pixels or its group."""

from __future__ import annotations

import hashlib

import numpy as np

SPLITS = ("train", "validation", "test")
VALIDATION_PERCENT = 10
TEST_PERCENT = 20


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 of an image's shape and pixels, in hexadecimal digits."""
    return hashlib.sha256(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def split_of(key: str) -> str:
    """The split of a key, an image's `pixel_hash` or the name of its group: 70, 10 and 20 percent."""
    percent = int.from_bytes(hashlib.sha256(key.encode()).digest()[-8:]) % 100
    if percent < VALIDATION_PERCENT:
        return "validation"
    return "test" if percent < VALIDATION_PERCENT + TEST_PERCENT else "train"
