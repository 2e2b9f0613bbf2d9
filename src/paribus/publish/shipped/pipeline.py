"""Images of given classes, drawn by the model in ``denoiser``. diffusers loads this file from the folder it lies in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

try:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as problem:
    raise ImportError("images are drawn through the package diffusers; run: pip install diffusers") from problem


class ParibusImagePipeline(DiffusionPipeline):
    """Follows the model's velocity from noise to images.

    Args:
        denoiser: the model.
    """

    def __init__(self, denoiser: PreTrainedModel) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int | str],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        solver: str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """One image of each class that is asked for; ``denoiser.config.sampling`` says what is not said here.

        Args:
            class_labels: numbers or names of classes, as in ``denoiser.config.id2label``.
            num_inference_steps: steps from noise to image.
            guidance_scale: how much the class counts; 1 as it was learned.
            solver: "heun", two calls of the model for each step, or "euler", one.
            generator: draws the noise.
            output_type: "pil", "np" [B, height, width, channels] or "pt" [B, channels, height, width], from 0 to 1.
            return_dict: whether to return an object with ``images``, or a tuple of them.

        Raises:
            ValueError: an unknown class, kind of output or solver.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type is {output_type!r}; allowed: 'pil', 'np', 'pt'")
        config, device = self.denoiser.config, self._execution_device
        classes = torch.tensor([self._class_number(label) for label in class_labels], device=device)
        shape = (len(classes), config.image["num_channels"], config.image["size"], config.image["size"])
        noise = randn_tensor(shape, generator=generator, device=device, dtype=self.denoiser.dtype)
        asked = {"steps": num_inference_steps, "solver": solver, "guidance": guidance_scale}
        settings = {name: known if asked[name] is None else asked[name] for name, known in config.sampling.items()}
        images: Any = as_images(self.denoiser.sample(noise, classes, **settings))
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _class_number(self, label: int | str) -> int:
        names: dict[int, str] = self.denoiser.config.id2label
        found = [number for number, name in names.items() if label in (number, name)]
        if not found:
            raise ValueError(f"class {label!r} is unknown; allowed: 0 to {len(names) - 1}, {', '.join(names.values())}")
        return found[0]


def as_images(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels from -1 to 1 as float32 from 0 to 1, the little that lies outside cut off."""
    return ((pixels.float() + 1) / 2).clamp(0, 1)
