"""Handwritten digits of 8x8 pixels, 1,797 of them in 17 shades of grey: for trying things out.

Scikit-learn's copy of the test half of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI).
The first shade becomes 0, the last 255.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import numpy as np

from ..pixels import grey
from ..source import EmbeddedImages, Picture

SIZE = 8


class Digits(EmbeddedImages):
    """Handwritten digits of 8x8 pixels."""

    licence = "CC BY 4.0 (the UCI repository's data)"
    packages = {"sklearn": "scikit-learn"}
    size = SIZE
    class_names = tuple("0123456789")

    def pictures(self) -> Iterator[Picture]:
        (folder,) = self.folders()
        with gzip.open(folder / "datasets" / "data" / "digits.csv.gz", "rt") as file:
            table = np.loadtxt(file, delimiter=",")
        for row in table:
            shades = np.rint(row[:-1] * (255 / 16)).astype(np.uint8)
            yield Picture(grey(shades.reshape(SIZE, SIZE)), int(row[-1]))
