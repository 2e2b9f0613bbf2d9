"""Colour patches of 32x32 pixels out of twelve pictures; the class is the picture that a patch is from.

The pictures come with scikit-image. Each is laid out in regions of 64x64 pixels with 8 pixels between them, of which
48 are taken at most. A region as a whole is in one split, so that a held-out patch overlaps no training patch and
touches none. A training region gives 25 patches that overlap (their corners are 8 pixels apart); a held-out one gives
the four that do not, since they are counted as independent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from ..pixels import decoded
from ..source import EmbeddedImages, Picture
from ..splits import split_of

SIZE = 32
REGION = 64
MARGIN = 8
TRAINING_STRIDE = 8
MAX_REGIONS = 48
FILES = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "ihc": "ihc.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}


class Textures(EmbeddedImages):
    """Colour patches of 32x32 pixels out of twelve pictures."""

    licence = "CC0, public domain or no known restrictions, as scikit-image tells for each picture"
    packages = {"skimage": "scikit-image", "PIL": "pillow"}
    size = SIZE
    class_names = tuple(FILES)

    def pictures(self) -> Iterator[Picture]:
        skimage, _ = self.folders()
        for class_index, (name, file) in enumerate(FILES.items()):
            path = skimage / "data" / file
            pixels = decoded(path, str(path))
            for region, top, left in regions(name, pixels.shape[0], pixels.shape[1]):
                for down, across in corners(region):
                    y, x = top + down, left + across
                    yield Picture(pixels[y : y + SIZE, x : x + SIZE], class_index, region)


def regions(name: str, height: int, width: int) -> list[tuple[str, int, int]]:
    """The regions of a picture, in the order of their names' hash: name, top, left."""
    pitch = REGION + MARGIN
    found = [
        (f"{name} {top} {left}", top, left)
        for top in range(0, height - REGION + 1, pitch)
        for left in range(0, width - REGION + 1, pitch)
    ]
    return sorted(found, key=lambda region: hashlib.sha256(region[0].encode()).digest())[:MAX_REGIONS]


def corners(region: str) -> Iterator[tuple[int, int]]:
    """Where the patches of a region begin in it: down, across."""
    stride = TRAINING_STRIDE if split_of(region) == "train" else SIZE
    starts = range(0, REGION - SIZE + 1, stride)
    yield from ((down, across) for down in starts for across in starts)
