"""Image classification: one class for each image; judged by the share of images that get another than theirs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from paribus.data.images.batches import ImageBatch
from paribus.data.order import permutation
from paribus.evaluation.image_baselines import majority_class, nearest_image, ridge_classifier
from paribus.evaluation.image_errors import ImageErrors, errors_by_class, image_errors
from paribus.evaluation.picture import grid

from ..image_task import SPLITS, ImageTask
from ..task import Inputs, Measure, Quality, TrivialBaseline

_SHOWN = 40
_COLUMNS = 10


class ImageClassification(ImageTask):
    """Say what is in an image."""

    metric = "error_rate"

    @dataclass(frozen=True)
    class Objective:
        """How images and classes are made harder to learn by heart.

        Raises:
            ValueError: a number outside what is said of it.
        """

        mixup: float = 0.0
        """Each image is mixed with another of its batch, λ x + (1 - λ) x', λ ~ Beta(mixup, mixup), and so are their
        classes (Zhang et al. 2017, arXiv:1710.09412; λ is drawn for each image, theirs for each batch); 0: not."""
        label_smoothing: float = 0.0
        """Share of a class that is given to all classes evenly (Szegedy et al. 2015, arXiv:1512.00567)."""

        def __post_init__(self) -> None:
            where = "objective of image_classification"
            if not 0 <= self.mixup < math.inf:
                raise ValueError(f"{where}: mixup is {self.mixup}; a number that is not negative is needed")
            if not 0 <= self.label_smoothing < 1:
                raise ValueError(
                    f"{where}: label_smoothing is {self.label_smoothing}; 0 or more and less than 1 is needed"
                )

    def inputs(self, batch: ImageBatch, step: int) -> Inputs:
        """The images and their classes; as probabilities where they are mixed or smoothed."""
        pixels, labels = batch.pixels, batch.classes
        if self.objective.mixup or self.objective.label_smoothing:
            labels = functional.one_hot(labels, self.num_classes).to(pixels.dtype)
        if self.objective.mixup:
            share, others = self._mixture(len(pixels), step)
            labels = labels.lerp(labels[others], share[:, None])
            pixels = pixels.lerp(pixels[others], share[:, None, None, None])
        if self.objective.label_smoothing:
            labels = labels.lerp(torch.full_like(labels, 1 / self.num_classes), self.objective.label_smoothing)
        return Inputs({"pixel_values": pixels, "labels": labels}, torch.ones(len(pixels), dtype=torch.long))

    def _mixture(self, size: int, step: int) -> tuple[Tensor, Tensor]:
        """How much of another image each of a batch gets, and of which one."""
        key = hashlib.sha256(f"{self.data.seed} mixup {step}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
        share = generator.beta(self.objective.mixup, self.objective.mixup, size)
        others = permutation(size, self.data.seed, "mixed images", step)
        return torch.from_numpy(share).float(), torch.from_numpy(others)

    def example(self) -> dict[str, Tensor]:
        """A grey image of the first class."""
        image = self.image
        return {
            "pixel_values": torch.zeros(1, image.num_channels, image.size, image.size),
            "labels": torch.zeros(1, dtype=torch.long),
        }

    def measure(self, cache: Path) -> Measure:
        """Held-out images."""
        return ImageMeasure(self, cache)

    def baselines(self, orders: tuple[int, ...], steps: int, cache: Path) -> Iterator[TrivialBaseline]:
        """Classifiers that look at pixels alone, made of all training images as they are."""
        known, asked = self.held_out("train", cache), self.held_out("test", cache)
        images = f"the {len(known.classes):,} training images"

        def line(name: str, predicted: Tensor, description: str) -> TrivialBaseline:
            return TrivialBaseline(name, (predicted != asked.classes).double().mean().item(), description)

        yield line(
            "majority class", majority_class(known.classes, len(asked.classes)), f"the commonest class of {images}"
        )
        yield line(
            "linear classifier",
            ridge_classifier(known.pixels, known.classes, asked.pixels),
            f"ridge regression of classes on pixels, in closed form on {images}",
        )
        yield line(
            "nearest image",
            nearest_image(known.pixels, known.classes, asked.pixels),
            f"the class of the one of {images} whose pixels are nearest",
        )


class ImageMeasure(Measure):
    """The share of held-out images misclassified, and some of these to look at."""

    def __init__(self, task: ImageClassification, cache: Path) -> None:
        self.images = {split: task.held_out(split, cache) for split in SPLITS}

    @property
    def documents_sha256(self) -> dict[str, str]:
        """By split, a hash of the images in their order."""
        return {split: images.sha256 for split, images in self.images.items()}

    def validation(self, model: Any) -> float:
        """The share of the validation images misclassified."""
        return self._errors(model, "validation").scores["error_rate"]

    def quality(self, model: Any) -> Quality:
        """Errors of all images; what was taken for what; test images, those misclassified first."""
        found = {split: self._errors(model, split) for split in self.images}
        test, images = found["test"], self.images["test"]
        names = images.class_names
        shown = (test.errors == 0).byte().argsort(stable=True)[:_SHOWN]
        pairs = torch.stack([images.classes, test.predicted], 1)[shown].tolist()
        return Quality(
            scores={split: errors.scores for split, errors in found.items()},
            documents=[
                [names[true], error, 1]
                for true, error in zip(images.classes.tolist(), test.errors.tolist(), strict=True)
            ],
            sample=grid(images.pixels[shown], _COLUMNS),
            details={
                **errors_by_class(test, images.classes, names),
                "shown": [[names[one] for one in pair] for pair in pairs],
            },
        )

    def _errors(self, model: Any, split: str) -> ImageErrors:
        images = self.images[split]
        return image_errors(model, images.pixels, images.classes)
