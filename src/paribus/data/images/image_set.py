"""Prepared sets of images: squared, de-duplicated, split by their own hash, cached as memory-mapped pixels.

What is prepared does not depend on the order in which the source gives its images: those of a split are kept in the
order of their hash. Of equal images one is kept, and none where they bear different classes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paribus.nn.settings import nearest

from ..cache import prepared_folder, stable_hash
from .local import HubImages, LocalImages
from .pixels import squared
from .source import EmbeddedImages, ImageSource, registry
from .splits import SPLITS, TEST_PERCENT, VALIDATION_PERCENT, pixel_hash, split_of

UNSORTED = "unsorted.bin"
CHUNK = 1_024


class ImageSet:
    """A prepared set of images on disk.

    Attributes:
        name: as in the data settings.
        folder: where it lies.
        manifest: name, source, version, licence, classes, size of each split, size and SHA-256 of each file.
    """

    def __init__(self, name: str, folder: Path, manifest: dict[str, Any]) -> None:
        self.name = name
        self.folder = folder
        self.manifest = manifest

    @property
    def manifest_hash(self) -> str:
        """A hash of the content alone: equal wherever and from whichever place equal images were prepared."""
        files = {name: file["sha256"] for name, file in self.manifest["files"].items()}
        return stable_hash([self.manifest["classes"], files])

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by index."""
        return tuple(self.manifest["classes"])

    def pixels(self, split: str) -> np.ndarray:
        """The images of a split, uint8 [N, size, size, 3], read from the disk as they are asked for.

        Raises:
            ValueError: unknown split.
        """
        pixels: np.ndarray = np.load(self.folder / f"{_known(split)}.npy", mmap_mode="r")
        return pixels

    def classes(self, split: str) -> np.ndarray:
        """The classes of a split's images, int64 [N]; errors as in `pixels`."""
        classes: np.ndarray = np.load(self.folder / f"{_known(split)}.classes.npy")
        return classes


def find_source(name: str) -> ImageSource:
    """The images of this name: an embedded set, ``hf:NAME``, or else a folder.

    Raises:
        ValueError: none of these exists.
    """
    embedded = registry()
    if name in embedded.names():
        return embedded.component(name, EmbeddedImages)()
    if name.startswith("hf:"):
        return HubImages(name)
    if re.search(r"[/.~]", name) or Path(name).exists():
        return LocalImages(name)
    raise ValueError(f"unknown images '{name}' (and no such folder); {nearest(name, embedded.names())}")


def prepare(name: str, size: int, cache: Path) -> ImageSet:
    """Prepare a set of images unless that was done before, and open it.

    Args:
        name: an embedded set, a folder, or ``hf:NAME``; see `find_source`.
        size: height and width of the prepared images.
        cache: the folder that keeps prepared data; see `paribus.data.cache.cache_folder`.

    Raises:
        ValueError: unknown images, or they cannot be read, or are too few, or of too few classes, or too small.
    """
    source = find_source(name)
    stem = re.sub(r"\W+", "_", Path(name).name or "images")[:40]
    key = stable_hash([name, size, source.identity()])[:12]
    return prepare_source(source, size, cache / "images" / f"{stem}-{size}-{key}")


def prepare_source(source: ImageSource, size: int, folder: Path) -> ImageSet:
    """The set of images that `source` becomes in `folder`; errors as in `prepare`."""
    if source.size is not None and size > source.size:
        raise ValueError(
            f"images '{source.name}' are {source.size}x{source.size} pixels; image.size is {size}, and at most "
            f"{source.size} is allowed, since nothing is gained by enlarging them"
        )
    return ImageSet(source.name, folder, prepared_folder(folder, lambda place: _write(source, size, place)))


class _Record(NamedTuple):
    """One image that was read; the smallest of several equal ones is kept."""

    key: str
    """What decides the split."""
    class_index: int
    position: int
    """Where its pixels lie among the unsorted ones."""


def _write(source: ImageSource, size: int, folder: Path) -> dict[str, Any]:
    """Write the three splits of a source and return what the manifest says of them."""
    if len(source.class_names) < 2:
        known = f"one class only, '{source.class_names[0]}'" if source.class_names else "no classes"
        raise ValueError(f"images '{source.name}' have {known}; two are needed")
    num_read, records = _read(source, size, folder / UNSORTED)
    kept = {digest: min(same) for digest, same in records.items() if len({record.class_index for record in same}) == 1}
    splits: dict[str, list[_Record]] = {split: [] for split in SPLITS}
    for digest in sorted(kept):
        splits[split_of(kept[digest].key)].append(kept[digest])
    counts = {
        split: np.bincount([record.class_index for record in of], minlength=len(source.class_names))
        for split, of in splits.items()
    }
    _check(source, counts)
    unsorted = np.memmap(folder / UNSORTED, np.uint8, mode="r", shape=(num_read, size, size, 3))
    for split, of in splits.items():
        _write_split(folder, split, of, unsorted)
    del unsorted
    (folder / UNSORTED).unlink()
    return {
        "name": source.name,
        "source": type(source).__name__,
        "version": source.version,
        "licence": source.licence,
        "size": size,
        "classes": list(source.class_names),
        "splits": {split: {"images": int(of.sum()), "of_each_class": of.tolist()} for split, of in counts.items()},
        "repeated": num_read - sum(map(len, splits.values())),
    }


def _read(source: ImageSource, size: int, path: Path) -> tuple[int, dict[str, list[_Record]]]:
    """Write all images, squared, to `path`; give their number, and what is known of them by their hash."""
    records: dict[str, list[_Record]] = defaultdict(list)
    position = 0
    with path.open("wb") as file:
        for picture in source.pictures():
            pixels = squared(picture.pixels, size)
            key = picture.group or pixel_hash(picture.pixels)
            records[pixel_hash(pixels)].append(_Record(key, picture.class_index, position))
            file.write(pixels.tobytes())
            position += 1
    return position, records


def _write_split(folder: Path, split: str, records: list[_Record], unsorted: np.ndarray) -> None:
    positions = np.array([record.position for record in records])
    shape = (len(positions), *unsorted.shape[1:])
    pixels = np.lib.format.open_memmap(folder / f"{split}.npy", mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, len(positions), CHUNK):
        pixels[start : start + CHUNK] = unsorted[positions[start : start + CHUNK]]
    pixels.flush()
    np.save(folder / f"{split}.classes.npy", np.array([record.class_index for record in records], dtype=np.int64))


def _check(source: ImageSource, counts: dict[str, np.ndarray]) -> None:
    """That there are enough images of each class for the splits."""
    total = sum(counts.values(), np.zeros(len(source.class_names), dtype=np.int64))
    for name, number, in_train in zip(source.class_names, total, counts["train"], strict=True):
        if not in_train:
            raise ValueError(
                f"images '{source.name}': of the {number} different images of class '{name}' none is in train; "
                "about 10 of each class are needed"
            )
    empty = [split for split, of in counts.items() if not of.sum()]
    if empty:
        raise ValueError(
            f"images '{source.name}' are only {total.sum()}, none of them in {' and '.join(empty)} "
            f"({VALIDATION_PERCENT} and {TEST_PERCENT} % are held out); about 100 are needed"
        )


def _known(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"unknown split '{split}'; {nearest(split, SPLITS)}")
    return split
