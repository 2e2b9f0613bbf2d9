"""Image generation: a class-conditional flow from noise to images, on patches (DiT).

x_t = (1 - t) ε + t x,   v = x - ε,   loss = ‖f(x_t, t, class) - v‖²      t from 0 (noise) to 1 (image)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from ..config import ParibusConfig
from ..flow import sample_flow
from ..modulation import Modulation
from ..patches import from_patches
from ..task import TaskModel

_FREQUENCIES = 128
_LOWEST_FREQUENCY = 1e-4
_TIME_SCALE = 1000.0
"""Steps of the diffusion models from which the time embedding comes; times here end at 1."""


@dataclass
class ImageGenerationOutput(ModelOutput):
    """What the model returns."""

    loss: Tensor | None = None
    velocity: Tensor | None = None
    """[B, channels, size, size]."""
    losses: dict[str, Tensor] | None = None
    """In training, the parts that `loss` is the sum of: flow, and those of the blocks."""


class Condition(nn.Module):
    """c = W₂ silu(W₁ waves(t)) + table[class] (Peebles and Xie 2022, arXiv:2212.09748, section 3.2)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.time_in = nn.Linear(2 * _FREQUENCIES, width)
        self.time_out = nn.Linear(width, width)
        self.table = nn.Embedding(num_classes + 1, width)

    def forward(self, times: Tensor, classes: Tensor) -> Tensor:
        """[B] times from 0 to 1 and [B] classes -> [B, D]."""
        weight = self.time_in.weight
        exact = torch.promote_types(weight.dtype, torch.float32)  # half precision cannot tell angles near 1000 apart
        exponents = torch.arange(_FREQUENCIES, device=times.device, dtype=exact) / _FREQUENCIES
        angles = times.to(exact)[:, None] * _TIME_SCALE * _LOWEST_FREQUENCY**exponents
        waves = torch.cat([angles.cos(), angles.sin()], -1).to(weight.dtype)
        c: Tensor = self.time_out(functional.silu(self.time_in(waves))) + self.table(classes)
        return c


class ParibusForImageGeneration(TaskModel):
    """The backbone on noisy patches, conditioned on time and class in every block, and a map back to pixels.

    Flow matching on straight lines (Lipman et al. 2022, arXiv:2210.02747; Liu et al. 2022, arXiv:2209.03003) with the
    transformer of Peebles and Xie 2022 (arXiv:2212.09748): its blocks' residual scheme is ``adaln_zero``, and the head
    starts at zero, so that the first velocity is zero everywhere.
    Differs: pixels, not latents; positions are the model's ``position``; the network gives a velocity, no variance;
    norms keep weights of their own, and all but the head and the modulations starts by the model's rule.

    Raises:
        ValueError: a block whose residual scheme reads no condition, or a class token.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of image generation.

        Raises:
            ValueError: no class.
        """

        num_classes: int = 10

        def __post_init__(self) -> None:
            if self.num_classes < 1:
                raise ValueError(f"task image_generation: num_classes is {self.num_classes}; at least 1 is needed")

    reads = "images"
    causal = False

    def __init__(self, config: ParibusConfig) -> None:
        super().__init__(config)
        image = self.image = config.image_config
        if image.class_token:
            raise ValueError("model: image: class_token is true; the task image_generation has none, false is needed")
        for name, block in zip(config.layer_blocks(), self.model.blocks, strict=True):
            if not block.residual.reads_condition:
                raise ValueError(
                    f"block '{name}': residual is '{config.block(name).residual['name']}'; the task image_generation "
                    "needs one that reads the time and the class: 'adaln_zero'"
                )
        self.condition = Condition(config.hidden_size, self.settings.num_classes)
        self.modulation = Modulation(config.hidden_size, 2)
        self.head = nn.Linear(config.hidden_size, image.patch_values)
        self.post_init()

    def reset_parameters(self) -> None:
        """The head is zero, whatever the model's rule says of it: that is the scheme."""
        nn.init.zeros_(self.head.weight)

    @property
    def no_class(self) -> int:
        """The number that says: any class."""
        num_classes: int = self.settings.num_classes
        return num_classes

    def forward(
        self,
        pixel_values: Tensor,
        times: Tensor,
        classes: Tensor,
        velocity: Tensor | None = None,
    ) -> ImageGenerationOutput:
        """The velocity at `pixel_values`.

        Args:
            pixel_values: [B, channels, size, size], x_t.
            times: [B], from 0 (noise) to 1 (image).
            classes: [B]; `no_class` is any.
            velocity: the true one; with it there is a loss, the mean square of the difference.
        """
        c = self.condition(times, classes)
        hidden = self.model(pixel_values=pixel_values, condition=c)
        x = hidden.last_hidden_state
        scale, shift = self.modulation(c, x)
        patches = self.head((1 + scale) * x + shift)
        found = from_patches(patches, self.image)
        loss, losses = None, None
        if velocity is not None:
            wide = torch.promote_types(found.dtype, torch.float32)
            flow = functional.mse_loss(found.to(wide), velocity.to(wide))
            loss = flow
            if hidden.losses is not None:
                loss = sum(hidden.losses.values(), flow)
                losses = {"flow": flow.detach(), **hidden.losses}
        return ImageGenerationOutput(loss=loss, velocity=found, losses=losses)

    def sample(self, noise: Tensor, classes: Tensor, *, steps: int, solver: str, guidance: float) -> Tensor:
        """The images that `noise` [B, channels, size, size] flows to; see `sample_flow`."""

        def velocity(x: Tensor, times: Tensor, classes: Tensor) -> Tensor:
            found: Tensor = self(x, times, classes).velocity
            return found

        return sample_flow(velocity, noise, classes, self.no_class, steps=steps, solver=solver, guidance=guidance)
