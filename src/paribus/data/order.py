"""Orders that nothing but the settings decide."""

from __future__ import annotations

import hashlib

import numpy as np


def permutation(size: int, seed: int, purpose: str, index: int) -> np.ndarray:
    """A permutation of range(size) that the other three decide, whatever the version of numpy.

    Numpy keeps the raw output of its bit generators for ever, but not what its methods make of it.
    """
    key = hashlib.sha256(f"{seed} {purpose} {index}".encode()).digest()
    raw = np.random.Philox(key=int.from_bytes(key[:16], "little")).random_raw(size)
    return np.argsort(raw, kind="stable")
