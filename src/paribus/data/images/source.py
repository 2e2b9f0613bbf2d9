"""Where labelled images come from: the one interface of embedded sets, users' folders and hub data sets."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib.metadata import version as distribution_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from paribus.nn.registry import Registry

from .pixels import INSTALL


class Picture(NamedTuple):
    """One labelled image."""

    pixels: np.ndarray
    """uint8 [height, width, 3], red, green and blue."""
    class_index: int
    group: str | None = None
    """What decides the split in place of the pixels: images that resemble one another too much share a group."""


class ImageSource(ABC):
    """Unprepared images, and what they are.

    Attributes:
        name: as the user wrote it.
        licence: the licence of the images.
        size: height and width of every image, which none is enlarged beyond; None: they differ, and are resized.
    """

    name: str
    licence: str = "the user's own"
    size: int | None = None

    @property
    @abstractmethod
    def version(self) -> str:
        """Which edition of the images this is."""

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by index."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides whether a prepared copy is still up to date; JSON."""

    @abstractmethod
    def pictures(self) -> Iterator[Picture]:
        """All images, in any order."""


class EmbeddedImages(ImageSource):
    """Images that come with an installed package, read from its files without importing it.

    Each file of ``data/images/sets`` defines one subclass; the file's name is the set's.

    Attributes:
        packages: the packages that decide the images: name as imported -> name as installed.
    """

    packages: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self.name = type(self).__module__.rpartition(".")[2]

    @property
    def version(self) -> str:
        self.folders()
        return ", ".join(f"{name} {distribution_version(name)}" for name in self.packages.values())

    def identity(self) -> dict[str, Any]:
        reader = (Path(__file__).with_name("sets") / f"{self.name}.py").read_bytes()
        return {"version": self.version, "reader": hashlib.sha256(reader).hexdigest()}

    def folders(self) -> list[Path]:
        """The folder of each package, in the order of `packages`.

        Raises:
            ValueError: a package is not installed.
        """
        folders = []
        for module, name in self.packages.items():
            spec = find_spec(module)
            if spec is None or spec.origin is None:
                raise ValueError(f"images '{self.name}' are read from the package {name}, which is missing; {INSTALL}")
            folders.append(Path(spec.origin).parent)
        return folders


def registry() -> Registry:
    """The embedded sets of images, one file each."""
    return Registry("sets", "paribus.data.images", Path(__file__).parent)
