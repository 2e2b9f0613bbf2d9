"""Pictures as arrays: uint8 [height, width, 3], decoded from files and squared."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np

INSTALL = 'run: pip install "paribus[image]"'
DEEP_MODES = ("I", "F")


def decoded(file: Path | BytesIO, where: str) -> np.ndarray:
    """A picture's pixels, turned as its camera noted; what is transparent shows black.

    Args:
        where: names the picture in error messages.

    Raises:
        ValueError: it cannot be read, or has pixels of more than 8 bits; or Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as problem:
        raise ValueError(f"reading {where} needs pillow; {INSTALL}") from problem
    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith(DEEP_MODES):
                raise ValueError(f"its pixels have the mode {picture.mode}; 8 bits a channel are needed")
            if picture.has_transparency_data:
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture.convert("RGBA"))
            return np.asarray(picture.convert("RGB"))
    # Pillow raises a SyntaxError for a broken PNG file.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise ValueError(f"{where} cannot be read as a picture: {problem}") from problem


def squared(pixels: np.ndarray, size: int) -> np.ndarray:
    """The central square of a picture, resized to [size, size, 3].

    Resizing is bicubic and, where the picture gets smaller, averages over all pixels that fall together. A picture of
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
        raise ValueError(f"resizing pictures from {side} to {size} pixels needs pillow; {INSTALL}") from problem
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))


def grey(shades: np.ndarray) -> np.ndarray:
    """Shades of grey, uint8 [height, width], as red, green and blue: [height, width, 3]."""
    return np.repeat(shades[..., None], 3, axis=-1)
