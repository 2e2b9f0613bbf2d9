"""What the tasks on images share: batches of a set to train on, held-out images to be judged on."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from paribus.data.images.batches import ImageBatches, LabelledImages, held_out_images
from paribus.data.images.spec import Images
from paribus.nn.patches import ImageConfig

from .run import Run
from .task import Task

SPLITS = ("validation", "test")


class ImageTask(Task):
    """A task that reads images; its model's settings have ``num_classes``.

    Raises:
        ValueError: a z-loss, which is a loss of language models.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        if run.z_loss:
            raise ValueError(f"run: z_loss is {run.z_loss}; the task {self.config.task['name']} has none, 0 is needed")

    @property
    def data(self) -> Images:
        """The images that are read."""
        assert isinstance(self.run.data, Images), "checked in Task"
        return self.run.data

    @cached_property
    def image(self) -> ImageConfig:
        """What the model's images look like."""
        return self.config.image_config

    @property
    def sequence_length(self) -> int:
        """Tokens of one image."""
        return self.image.num_tokens

    @cached_property
    def num_classes(self) -> int:
        """Classes that the model knows."""
        num_classes: int = self.model_class.settings_of(self.config).num_classes
        return num_classes

    @property
    def arguments(self) -> dict[str, Any]:
        """None."""
        return {}

    def batches(self, cache: Path) -> ImageBatches:
        """Batches of the set, in the model's size and channels."""
        batches = ImageBatches(self.data, self.image.size, self.image.num_channels, cache)
        if self.num_classes != len(batches.class_names):
            raise ValueError(
                f"model: task {self.config.task['name']}: num_classes is {self.num_classes}; the set of images "
                f"'{self.data.images}' has {len(batches.class_names)}, and as many are needed"
            )
        return batches

    def held_out(self, split: str, cache: Path) -> LabelledImages:
        """The images of a split that the run is measured on; of "train", all of them, as they are without chance."""
        most = None if split == "train" else self.run.evaluation.num_images(split)
        return held_out_images(self.data, split, self.image.size, self.image.num_channels, cache, most)

    def generator(self, purpose: str, step: int) -> torch.Generator:
        """What draws for batch number `step`; the data's seed, the purpose and the step decide it."""
        key = hashlib.sha256(f"{self.data.seed} {purpose} {step}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
