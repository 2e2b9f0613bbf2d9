"""Prepared corpora: documents de-duplicated, split by their own hash, cached as memory-mapped bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..nn.settings import nearest
from .cache import prepared_folder, stable_hash
from .local import STREAM, HubCorpus, LocalCorpus, Shard
from .source import EmbeddedCorpus, Source, registry

SPLITS = ("train", "validation", "test")
HELD_OUT_PERCENT = 5


class Documents(Sequence[bytes]):
    """The documents of one split, UTF-8, read from the disk as they are asked for."""

    def __init__(self, folder: Path, split: str) -> None:
        self.offsets = np.load(folder / f"{split}.offsets.npy")
        self.text = np.memmap(folder / f"{split}.bin", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return self.text[self.offsets[i] : self.offsets[i + 1]].tobytes()


class Corpus:
    """A prepared corpus on disk.

    Attributes:
        name: as in the data settings.
        folder: where it lies.
        manifest: name, source, version, licence, size of each split, size and SHA-256 of each file.
    """

    def __init__(self, name: str, folder: Path, manifest: dict[str, Any]) -> None:
        self.name = name
        self.folder = folder
        self.manifest = manifest

    @property
    def manifest_hash(self) -> str:
        """A hash of the content alone: equal wherever and from whichever place equal text was prepared."""
        return stable_hash({name: file["sha256"] for name, file in self.manifest["files"].items()})

    def documents(self, split: str) -> Documents:
        """The documents of a split.

        Raises:
            ValueError: unknown split.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split '{split}'; {nearest(split, SPLITS)}")
        return Documents(self.folder, split)


def find_source(name: str) -> Source:
    """The corpus of this name: an embedded one, ``hf:NAME``, the first shard of ``stream:NAME``, or else a path.

    Raises:
        ValueError: none of these exists.
    """
    embedded = registry()
    if name in embedded.names():
        return embedded.component(name, EmbeddedCorpus)()
    if name.startswith("hf:"):
        return HubCorpus(name)
    if name.startswith(STREAM):
        return Shard(name, 0)
    if re.search(r"[/.#~]", name) or Path(name).exists():
        return LocalCorpus(name)
    raise ValueError(f"unknown corpus '{name}' (and no such file or folder); {nearest(name, embedded.names())}")


def prepare(name: str, cache: Path) -> Corpus:
    """Prepare a corpus unless that was done before, and open it.

    Args:
        name: an embedded corpus, a path, or ``hf:NAME``; see `find_source`.
        cache: the folder that keeps prepared data; see `paribus.data.cache.cache_folder`.

    Raises:
        ValueError: unknown corpus, or its documents cannot be read, or are too few to split.
    """
    source = find_source(name)
    stem = re.sub(r"\W+", "_", Path(name.partition("#")[0]).name or "corpus")[:40]
    return prepare_source(source, cache / "corpora" / f"{stem}-{stable_hash([name, source.identity()])[:12]}")


def prepare_source(source: Source, folder: Path) -> Corpus:
    """The corpus that `source` becomes in `folder`; errors as in `prepare`."""
    return Corpus(source.name, folder, prepared_folder(folder, lambda place: _write(source, place)))


def split_of(document: bytes) -> str:
    """The split that a document belongs to, decided by nothing but its content: 90, 5 and 5 percent."""
    percent = int.from_bytes(hashlib.sha256(document.strip()).digest()[-8:]) % 100
    held_out = ("validation", "test")
    return held_out[percent // HELD_OUT_PERCENT] if percent < 2 * HELD_OUT_PERCENT else "train"


def _write(source: Source, folder: Path) -> dict[str, Any]:
    """Write the three splits of a source and return what the manifest says of them."""
    sizes: dict[str, list[int]] = {split: [] for split in SPLITS}
    files = {split: (folder / f"{split}.bin").open("wb") for split in SPLITS}
    try:
        for document in _unique(source):
            split = split_of(document)
            files[split].write(document)
            sizes[split].append(len(document))
    finally:
        for file in files.values():
            file.close()
    _check_splits(source, sizes)
    for split in SPLITS:
        np.save(folder / f"{split}.offsets.npy", np.cumsum([0, *sizes[split]], dtype=np.int64))
    return {
        "name": source.name,
        "source": type(source).__name__,
        "version": source.version,
        "licence": source.licence,
        "splits": {split: {"documents": len(of), "bytes": sum(of)} for split, of in sizes.items()},
    }


def _unique(source: Source) -> Iterator[bytes]:
    """The documents in UTF-8, without NUL bytes, empty ones and repetitions, up to the source's limit."""
    seen: set[bytes] = set()
    total_bytes = 0
    for text in source.documents():
        # A lone surrogate (an escape in some docstring) is no Unicode text and has no UTF-8.
        document = text.replace("\0", "").encode("utf-8", errors="ignore")
        digest = hashlib.sha256(document.strip()).digest()
        if not document.strip() or digest in seen:
            continue
        seen.add(digest)
        total_bytes += len(document)
        if source.max_bytes is not None and total_bytes > source.max_bytes:
            return
        yield document


def _check_splits(source: Source, sizes: dict[str, list[int]]) -> None:
    total = sum(map(len, sizes.values()))
    if not total:
        raise ValueError(f"corpus '{source.name}' has no text in it")
    empty = [split for split, of in sizes.items() if not of]
    if empty:
        counted = f"{total} document" + "s" * (total > 1)
        raise ValueError(
            f"corpus '{source.name}' has only {counted}, none of them in {' and '.join(empty)} "
            f"({HELD_OUT_PERCENT} % each); about 100 documents are needed"
        )
