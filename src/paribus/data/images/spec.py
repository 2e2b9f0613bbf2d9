"""Which images a run reads, and what is done to them before the model sees them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Images:
    """What a run on images reads.

    Raises:
        ValueError: a number that is too small.
    """

    images: str
    """Name of an embedded set of images, a folder with a sub-folder for each class, or hf:NAME."""
    batch_size: int = 64
    """Images of one batch."""
    seed: int = 0
    """Decides the order and the augmentation, and nothing else."""
    crop: int = 0
    """Pixels of background put around an image before a part of its own size is cut out at random; 0: none."""
    flip: bool = False
    """Whether half of the images are mirrored, left to right; only where a mirrored image keeps its class."""

    def __post_init__(self) -> None:
        for key, least in (("batch_size", 1), ("crop", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"data: {key} is {getattr(self, key)}; at least {least} is needed")
