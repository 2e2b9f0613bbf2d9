"""A generator of images: a pipeline of diffusers, whose model and code lie in ``denoiser``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paribus.nn.task import TaskModel
from paribus.training.run import Sampling

from ..form import PROOF_ROWS, ImageForm

_SHIPPED = Path(__file__).parents[1] / "shipped"
_SEED = 0
_SAMPLING = {name: getattr(Sampling(), name) for name in ("steps", "solver", "guidance")}
"""How images are drawn where the model's config does not say."""
_PROOF_STEPS = 3


class ImageGeneration(ImageForm):
    """Loaded by DiffusionPipeline."""

    needs = ("diffusers", "PIL")
    what = "A generator of images"
    packages = "`torch`, `transformers>=5.8,<6`, `diffusers>=0.36` and `pillow`"
    library = "diffusers"
    pipeline_tag = "unconditional-image-generation"
    auto_class = "AutoModel"
    code = "denoiser"
    proved = "noisy pixels with the velocities that they must give, and images that a seed must give"
    checked = "drew these images through the pipeline"

    def __init__(self, model: TaskModel, symbols: Sequence[str]) -> None:
        super().__init__(model, symbols)
        if not hasattr(model.config, "sampling"):
            model.config.sampling = dict(_SAMPLING)

    def write(self, folder: Path) -> None:
        import diffusers

        shutil.copyfile(_SHIPPED / "pipeline.py", folder / "pipeline.py")
        shutil.copyfile(_SHIPPED / "load_denoiser.py", folder / self.code / "load_denoiser.py")
        index = {
            "_class_name": ["pipeline", "ParibusImagePipeline"],
            "_diffusers_version": diffusers.__version__,
            self.code: ["load_denoiser", "Denoiser"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def proof(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        from ..shipped.pipeline import as_images

        image, generator = self.model.config.image_config, torch.Generator().manual_seed(_SEED)
        shape = (PROOF_ROWS, image.num_channels, image.size, image.size)
        noise = torch.randn(shape, generator=generator)
        classes = torch.arange(PROOF_ROWS) % len(self.symbols)
        times = torch.tensor([0.25, 0.75])
        model: Any = self.model
        settings = {**model.config.sampling, "steps": _PROOF_STEPS}
        images = as_images(model.sample(noise, classes, **settings))
        inputs = {"pixel_values": noise, "times": times, "classes": classes}
        tensors = {**inputs, "velocity": model(**inputs).velocity, "images": images}
        return tensors, {"seed": str(_SEED), **{name: str(value) for name, value in settings.items()}}
