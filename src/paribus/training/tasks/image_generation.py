"""Image generation: learn the velocity from noise to images; judged by its error, and by what a classifier sees.

x_t = (1 - t) ε + t x,   v = x - ε      with noise ε and time t drawn anew for each image of each batch
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from paribus.data.images.batches import ImageBatch, ImageBatches
from paribus.evaluation.flow_loss import flow_losses, on_the_way, pixels_alone, pixels_together

from ..image_task import SPLITS, ImageTask
from ..judge import find_judge
from ..samples import SampleQuality
from ..task import Inputs, Measure, Quality, TrivialBaseline

_LARGEST_COVARIANCE = 4096


class ImageGeneration(ImageTask):
    """Make images of a class out of noise."""

    metric = "flow_loss"

    @dataclass(frozen=True)
    class Objective:
        """What is drawn for each image.

        Raises:
            ValueError: a share outside 0 to 1.
        """

        class_dropout: float = 0.1
        """Share of images whose class is hidden, so that the model learns both velocities that guidance needs (Ho and
        Salimans 2022, arXiv:2207.12598)."""
        times: Literal["uniform", "logit_normal"] = "uniform"
        """logit_normal: t = σ(n), n standard normal: more of the middle (Esser et al. 2024, arXiv:2403.03206)."""

        def __post_init__(self) -> None:
            if not 0 <= self.class_dropout <= 1:
                raise ValueError(
                    f"objective of image_generation: class_dropout is {self.class_dropout}; 0 to 1 is allowed"
                )

    def batches(self, cache: Path) -> ImageBatches:
        """Batches of the set; a judge that is named is looked at now, not at the end of the training."""
        batches = super().batches(cache)
        judge = self.run.evaluation.sampling.judge
        if judge is not None and self.run.evaluation.sampling.num_images:
            find_judge(judge, self.data, self.config, batches.class_names, cache)
        return batches

    def inputs(self, batch: ImageBatch, step: int) -> Inputs:
        """Images on their way from noise, and their velocities."""
        pixels, B = batch.pixels, len(batch.pixels)
        generator = self.generator("flow", step)
        noise = torch.randn(pixels.shape, generator=generator)
        if self.objective.times == "uniform":
            times = torch.rand(B, generator=generator)
        else:
            times = torch.randn(B, generator=generator).sigmoid()
        hidden = torch.rand(B, generator=generator) < self.objective.class_dropout
        tensors: dict[str, Tensor | None] = {
            "pixel_values": on_the_way(pixels, noise, times),
            "times": times,
            "classes": batch.classes.masked_fill(hidden, self.num_classes),
            "velocity": pixels - noise,
        }
        return Inputs(tensors, torch.ones(B, dtype=torch.long))

    def example(self) -> dict[str, Tensor]:
        """Zeros."""
        image = torch.zeros(1, self.image.num_channels, self.image.size, self.image.size)
        return {
            "pixel_values": image,
            "times": torch.zeros(1),
            "classes": torch.zeros(1, dtype=torch.long),
            "velocity": image,
        }

    def measure(self, cache: Path) -> Measure:
        """Held-out images, and a judge of samples if such are drawn."""
        return FlowMeasure(self, cache)

    def baselines(self, orders: tuple[int, ...], steps: int, cache: Path) -> Iterator[TrivialBaseline]:
        """Velocities that are right if images are normal: closed forms of the training images, whatever the class."""
        known, asked = self.held_out("train", cache).pixels, self.held_out("test", cache)
        offered = [("pixels alone", pixels_alone, "each pixel is normal by itself: its mean and variance over")]
        if known[0].numel() <= _LARGEST_COVARIANCE:
            offered.append(("pixels together", pixels_together, "images are normal: the mean and covariance of"))
        for name, velocity, assumption in offered:
            score = float(flow_losses(velocity(known), asked.pixels, asked.classes).mean())
            yield TrivialBaseline(name, score, f"the best velocity if {assumption} the {len(known):,} training images")


class FlowMeasure(Measure):
    """The error of the velocity on held-out images, and how good samples are."""

    def __init__(self, task: ImageGeneration, cache: Path) -> None:
        self.images = {split: task.held_out(split, cache) for split in SPLITS}
        self.samples = None
        if task.run.evaluation.sampling.num_images:
            self.samples = SampleQuality(task, self.images["test"], cache)

    @property
    def documents_sha256(self) -> dict[str, str]:
        """By split, a hash of the images in their order."""
        return {split: images.sha256 for split, images in self.images.items()}

    def validation(self, model: Any) -> float:
        """The mean squared error of the velocity on the validation images."""
        return float(self._losses(model, "validation").mean())

    def quality(self, model: Any) -> Quality:
        """Errors of all images; a model with finite ones is asked for samples."""
        losses = {split: self._losses(model, split) for split in self.images}
        scores = {split: {"flow_loss": float(of.mean())} for split, of in losses.items()}
        finite = all(math.isfinite(found["flow_loss"]) for found in scores.values())
        samples = self.samples(model) if finite and self.samples is not None else None
        if samples is not None:
            scores["test"] |= samples.scores
        test = self.images["test"]
        names = [test.class_names[of] for of in test.classes.tolist()]
        return Quality(
            scores=scores,
            documents=[[name, loss, 1] for name, loss in zip(names, losses["test"].tolist(), strict=True)],
            sample=None if samples is None else samples.picture,
            details=None if samples is None else samples.details,
        )

    def _losses(self, model: Any, split: str) -> Tensor:
        device, was_training = next(model.parameters()).device, model.training

        def velocity(x: Tensor, times: Tensor, classes: Tensor) -> Tensor:
            found: Tensor = model(x.to(device), times.to(device), classes.to(device)).velocity
            return found.float().cpu()

        model.eval()
        losses = flow_losses(velocity, self.images[split].pixels, self.images[split].classes)
        model.train(was_training)
        return losses
