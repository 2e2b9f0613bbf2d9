"""Samples of a model that makes images, and everything that is asked of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paribus.data.images.batches import LabelledImages, held_out_images
from paribus.evaluation.image_quality import frechet_distance, nearest_images, share_below
from paribus.evaluation.picture import grid

from .image_task import ImageTask
from .judge import find_judge

_IMAGES_AT_ONCE = 100
_MOST_COMPARED = 10_000
"""Training images among which neighbours are sought, the first in the order of their hash."""
_SHOWN_CLASSES, _SHOWN_OF_EACH, _SHOWN_PAIRS = 20, 10, 10
_COPY_QUANTILE = 0.01


@dataclass(frozen=True)
class Samples:
    """What was found out about the samples of one model."""

    scores: dict[str, float]
    picture: str
    """Some of them, one row a class, as a data: URI."""
    details: dict[str, Any]
    """JSON."""


class SampleQuality:
    """Draws the same noise for every model, and judges what becomes of it.

    Args:
        test: the images that samples should be like.

    Raises:
        ValueError: a judge that does not fit.
    """

    def __init__(self, task: ImageTask, test: LabelledImages, cache: Path) -> None:
        self.settings = task.run.evaluation.sampling
        self.test = test
        self.judge = find_judge(self.settings.judge, task.data, task.config, test.class_names, cache)
        image = task.image
        self.train = held_out_images(task.data, "train", image.size, image.num_channels, cache, _MOST_COMPARED).pixels
        self.classes = torch.arange(self.settings.num_images) % task.num_classes

    def __call__(self, model: Any) -> Samples:
        """Draw samples of `model` and judge them; one that is not finite is infinitely far away."""
        images = self.draw(model)
        if not images.isfinite().all():
            return Samples({"frechet_distance": math.inf, "sample_error_rate": 1.0}, "", {})
        features, seen = self.judge.look(images)
        true_features, _ = self.judge.look(self.test.pixels)
        known_features, _ = self.judge.look(self.train[: len(images)])
        wrong = (seen != self.classes).double()
        names = self.test.class_names
        return Samples(
            scores={
                "frechet_distance": frechet_distance(features, true_features),
                "sample_error_rate": float(wrong.mean()),
            },
            picture=grid(images[self._shown()], _SHOWN_OF_EACH),
            details={
                "judge": {"accuracy": self.judge.accuracy, "weights_sha256": self.judge.weights_sha256},
                "frechet_distance_of_training_images": frechet_distance(known_features, true_features),
                "sample_error_by_class": {
                    name: float(wrong[self.classes == of].mean()) for of, name in enumerate(names)
                },
                "copies": self._copies(images),
            },
        )

    @torch.no_grad()
    def draw(self, model: Any) -> Tensor:
        """The samples [N, channels, size, size], cut off at -1 and 1."""
        device, was_training = next(model.parameters()).device, model.training
        noise = torch.randn(len(self.classes), *self.test.pixels.shape[1:], generator=torch.Generator().manual_seed(0))
        parts = zip(noise.split(_IMAGES_AT_ONCE), self.classes.split(_IMAGES_AT_ONCE), strict=True)
        how = {key: getattr(self.settings, key) for key in ("steps", "solver", "guidance")}
        model.eval()
        images = [model.sample(part.to(device), of.to(device), **how).float().cpu() for part, of in parts]
        model.train(was_training)
        return torch.cat(images).clamp(-1, 1)

    def _shown(self) -> Tensor:
        """Which samples are shown: some of each class, class by class."""
        order = self.classes.argsort(stable=True)
        place = torch.arange(len(order)) - torch.searchsorted(self.classes[order], self.classes[order])
        return order[(place < _SHOWN_OF_EACH) & (self.classes[order] < _SHOWN_CLASSES)]

    def _copies(self, images: Tensor) -> dict[str, Any]:
        """How near samples come to training images, beside how near test images do."""
        distances, nearest = nearest_images(images, self.train)
        others, _ = nearest_images(self.test.pixels, self.train)
        share, threshold = share_below(distances, others, _COPY_QUANTILE)
        closest = distances.argsort(stable=True)[:_SHOWN_PAIRS]
        return {
            "training_images": len(self.train),
            "median_distance": float(distances.median()),
            "median_distance_of_test_images": float(others.median()),
            "threshold": threshold,
            "share_below_threshold": share,
            "share_of_test_images_below_threshold": _COPY_QUANTILE,
            "closest_distances": distances[closest].tolist(),
            "closest_pairs": grid(torch.cat([images[closest], self.train[nearest[closest]]]), len(closest)),
        }
