"""Small sets of images, made anew for each test, and the embedded ones, prepared once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paribus.data.images.image_set import ImageSet, prepare
from paribus.data.images.source import ImageSource, Picture, registry

Embedded = Callable[[str], ImageSet]


class Given(ImageSource):
    """Images that are given, and how often they were read."""

    name = "given"
    version = "1"
    class_names: tuple[str, ...] = ()

    def __init__(self, pictures: Sequence[Picture], class_names: Sequence[str] = ("round", "square")) -> None:
        self.given = list(pictures)
        self.class_names = tuple(class_names)
        self.times_read = 0

    def identity(self) -> dict[str, Any]:
        return {}

    def pictures(self) -> Iterator[Picture]:
        self.times_read += 1
        yield from self.given


def noise(number: int, size: int = 4, seed: int = 0) -> np.ndarray:
    """Pictures of random colours: uint8 [number, size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (number, size, size, 3), dtype=np.uint8)


def alternating(pixels: np.ndarray) -> list[Picture]:
    """The pictures, of two classes in turn."""
    return [Picture(image, number % 2) for number, image in enumerate(pixels)]


@pytest.fixture(scope="session")
def images_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="session")
def embedded(images_cache: Path) -> Embedded:
    """Gives an embedded set in its own size."""
    sizes = {name: registry().component(name, ImageSource)().size for name in registry().names()}
    return lambda name: prepare(name, sizes[name], images_cache)
