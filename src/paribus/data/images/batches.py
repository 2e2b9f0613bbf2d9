"""Batches of images as a pure function of (settings, step), and the images that are held out.

1. In epoch e, the training images are visited in a permutation drawn from (seed, e); each once.
2. Image number n of a run is the visit n mod N of epoch n div N; it is cropped and mirrored as (seed, n) decides.
3. Batch t is the images t · batch_size and following.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from ..order import permutation
from .image_set import prepare
from .spec import Images

CHANNELS = (1, 3)
LUMINANCE = (299, 587, 114)
"""Red, green and blue in thousandths of a grey image (ITU-R BT.601); they sum to 1000, so that grey stays as it is."""


@dataclass(frozen=True)
class ImageBatch:
    """The images of one step."""

    pixels: Tensor
    """float32 [B, C, size, size] from -1 to 1, cropped and mirrored."""
    classes: Tensor
    """int64 [B]."""
    counts: dict[str, int]
    """Images of each set."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of one split, as they are."""

    pixels: Tensor
    """float32 [N, C, size, size] from -1 to 1."""
    classes: Tensor
    """int64 [N]."""
    sha256: str
    """Of the pixels, the classes and their names."""
    class_names: tuple[str, ...]


class ImageBatches:
    """All batches of a run, read from a prepared set of images.

    Args:
        size: height and width of the images.
        num_channels: 3 for colour, 1 for grey.

    Raises:
        ValueError: images that cannot be prepared, or settings that do not fit them.
    """

    def __init__(self, data: Images, size: int, num_channels: int, cache: Path) -> None:
        if data.crop >= size:
            raise ValueError(f"data: crop is {data.crop}; less than image.size, which is {size}, is needed")
        self.data = data
        self.num_channels = _channels(num_channels)
        self.set = prepare(data.images, size, cache)
        self.pixels = self.set.pixels("train")
        self.classes = self.set.classes("train")
        self._epoch_order = lru_cache(maxsize=2)(self._draw_epoch_order)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by index."""
        return self.set.class_names

    def batch(self, step: int) -> ImageBatch:
        """Batch number `step`, from 0."""
        first = step * self.data.batch_size
        images = [self.image(number) for number in range(first, first + self.data.batch_size)]
        return ImageBatch(
            pixels=as_tensor(augment(self.pixels[images], self.data, first), self.num_channels),
            classes=torch.from_numpy(self.classes[images]),
            counts={self.data.images: self.data.batch_size},
        )

    def image(self, number: int) -> int:
        """Which training image is number `number` of the run."""
        epoch, visit = divmod(number, len(self.classes))
        return int(self._epoch_order(epoch)[visit])

    def digest(self, batch: ImageBatch) -> str:
        """A short hash of a batch's pixels and classes."""
        return hashlib.sha256(batch.pixels.numpy().tobytes() + batch.classes.numpy().tobytes()).hexdigest()[:16]

    def epochs_at(self, step: int) -> dict[str, float]:
        """How often the set has been read after `step` steps."""
        return {self.data.images: step * self.data.batch_size / len(self.classes)}

    def manifests(self) -> dict[str, Any]:
        """What identifies the data, for the run's record: JSON."""
        told = {key: self.set.manifest[key] for key in ("version", "licence", "size", "classes", "splits")}
        return {"corpora": {self.data.images: {"sha256": self.set.manifest_hash, **told}}}

    def _draw_epoch_order(self, epoch: int) -> np.ndarray:
        return permutation(len(self.classes), self.data.seed, "images", epoch)


def held_out_images(
    data: Images, split: str, size: int, num_channels: int, cache: Path, max_images: int | None
) -> LabelledImages:
    """The first `max_images` images of a split in the order of their hash, or all of them; none is augmented.

    Raises:
        ValueError: unknown split, or images that cannot be prepared.
    """
    prepared = prepare(data.images, size, cache)
    pixels = as_tensor(prepared.pixels(split)[:max_images], _channels(num_channels))
    classes = torch.from_numpy(prepared.classes(split)[:max_images])
    digest = hashlib.sha256(repr((tuple(pixels.shape), prepared.class_names)).encode())
    for part in (pixels, classes):
        digest.update(part.numpy().tobytes())
    return LabelledImages(pixels, classes, digest.hexdigest(), prepared.class_names)


def as_tensor(pixels: np.ndarray, num_channels: int) -> Tensor:
    """Images uint8 [N, height, width, 3] as float32 [N, num_channels, height, width] from -1 to 1."""
    channels = np.moveaxis(pixels, -1, 1)
    if num_channels == 1:
        red, green, blue = (share * channels[:, i].astype(np.uint32) for i, share in enumerate(LUMINANCE))
        channels = ((red + green + blue + 500) // 1000)[:, None]
    values: np.ndarray = np.ascontiguousarray(channels, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    return torch.from_numpy(values)


def augment(pixels: np.ndarray, data: Images, first: int) -> np.ndarray:
    """Images `first` and following of a run, uint8 [N, size, size, 3], cropped and mirrored as the settings say."""
    edge, places = data.crop, 2 * data.crop + 1
    numbers = range(first, first + len(pixels))
    draws = np.array([_draws(data.seed, number, (places, places, 2)) for number in numbers])  # N 3
    padded = np.pad(pixels, ((0, 0), (edge, edge), (edge, edge), (0, 0)))  # with zeros, which are black
    windows = sliding_window_view(padded, pixels.shape[1:3], axis=(1, 2))  # N places places 3 size size
    shown = windows[np.arange(len(pixels)), draws[:, 0], draws[:, 1]]  # N 3 size size
    if data.flip:
        mirrored = draws[:, 2] == 1
        shown[mirrored] = shown[mirrored][..., ::-1]
    return np.moveaxis(shown, 1, -1)


def _draws(seed: int, number: int, choices: Sequence[int]) -> list[int]:
    """For each of `choices` a number below it, decided by (seed, number)."""
    digest = hashlib.sha256(f"{seed} augmentation {number}".encode()).digest()
    return [int.from_bytes(digest[8 * i : 8 * i + 8]) % below for i, below in enumerate(choices)]


def _channels(num_channels: int) -> int:
    if num_channels not in CHANNELS:
        raise ValueError(f"image.num_channels is {num_channels}; 1 (grey) or 3 (colour) is needed")
    return num_channels
