"""An image classifier: an image processor, the names of the classes, and the pipeline image-classification."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paribus.nn.task import TaskModel

from ..form import PROOF_ROWS, ImageForm

_PROCESSOR = "preprocessor_config.json"
_BICUBIC = 3
"""Pillow's number for it, which is how the images of a run are resized."""


class ImageClassification(ImageForm):
    """Loaded by AutoModelForImageClassification.

    Raises:
        ValueError: images of other than three channels, which is what pipelines hand in.
    """

    needs = ("PIL",)
    what = "An image classifier"
    packages = "`torch`, `transformers>=5.8,<6` and `pillow`"
    pipeline_tag = "image-classification"
    auto_class = "AutoModelForImageClassification"
    proved = "pixels and the logits that they must give"
    checked = "read a picture of another size through the image processor and the pipeline"

    def __init__(self, model: TaskModel, symbols: Sequence[str]) -> None:
        super().__init__(model, symbols)
        if (channels := model.config.image_config.num_channels) != 3:
            raise ValueError(
                f"model: image: num_channels is {channels}; a classifier is published for pipelines, which hand in "
                "colour images, so 3 is needed (grey images are read in 3 equal channels)"
            )

    def write(self, folder: Path) -> None:
        self._processor().save_pretrained(folder)
        path = folder / _PROCESSOR
        # Saved as the class that needs torchvision, of which this one is the same without.
        settings = {**json.loads(path.read_text(encoding="utf-8")), "image_processor_type": "ViTImageProcessorPil"}
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def proof(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        from PIL import Image

        image, generator = self.model.config.image_config, torch.Generator().manual_seed(0)
        picture = torch.randint(256, (image.size + 5, image.size + 2, 3), generator=generator, dtype=torch.uint8)
        read = self._processor()(Image.fromarray(picture.numpy()), return_tensors="pt")["pixel_values"]
        pixels = torch.rand(PROOF_ROWS, 3, image.size, image.size, generator=generator) * 2 - 1
        return {"pixel_values": pixels, "logits": self.model(pixels).logits, "picture": picture, "read": read}, {}

    def _processor(self) -> Any:
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        size = self.model.config.image_config.size
        half = [0.5, 0.5, 0.5]
        return ViTImageProcessorPil(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            do_center_crop=True,
            resample=_BICUBIC,
            image_mean=half,
            image_std=half,
            do_convert_rgb=True,
        )
