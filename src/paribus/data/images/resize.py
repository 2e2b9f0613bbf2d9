"""How a picture of any shape becomes a square of a given size."""

from __future__ import annotations

import numpy as np

from .source import INSTALL


def squared(pixels: np.ndarray, size: int) -> np.ndarray:
    """The central square of an image, uint8 [height, width, 3], resized to [size, size, 3].

    Resizing is bicubic and, where the image gets smaller, averages over all pixels that fall together. An image of
    the wanted shape stays as it is.

    Raises:
        ValueError: Pillow, which resizes, is not installed.
    """
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    if side == size:
        return square
    try:
        from PIL import Image
    except ImportError as problem:
        raise ValueError(f"resizing images from {side} to {size} pixels needs pillow; {INSTALL}") from problem
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))
