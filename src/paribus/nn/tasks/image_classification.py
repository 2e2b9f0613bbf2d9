"""Image classification: one class for each image, from the mean of its tokens or from a class token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import ImageClassifierOutput as _ImageClassifierOutput

from ..config import ParibusConfig
from ..task import TaskModel


@dataclass
class ImageClassifierOutput(_ImageClassifierOutput):
    """What the model returns."""

    features: Tensor | None = None
    """[B, D], what the head reads."""
    losses: dict[str, Tensor] | None = None
    """In training, the parts that `loss` is the sum of: cross_entropy, and those of the blocks."""


class ParibusForImageClassification(TaskModel):
    """The backbone on patches, pooled, and a linear head (Dosovitskiy et al. 2020, arXiv:2010.11929)."""

    @dataclass(frozen=True)
    class Config:
        """Settings of image classification.

        Raises:
            ValueError: fewer than two classes.
        """

        num_classes: int = 10

        def __post_init__(self) -> None:
            if self.num_classes < 2:
                raise ValueError(f"task image_classification: num_classes is {self.num_classes}; at least 2 are needed")

    reads = "images"
    causal = False

    def __init__(self, config: ParibusConfig) -> None:
        super().__init__(config)
        self.class_token = config.image_config.class_token
        self.head = nn.Linear(config.hidden_size, self.settings.num_classes)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> ImageClassifierOutput:
        """Run the model.

        Args:
            pixel_values: [B, channels, size, size], from -1 to 1.
            inputs_embeds: [B, T, D], embedded patches in place of pixels.
            labels: [B] classes, or [B, classes] probabilities.

        Returns:
            loss (mean cross entropy, nats; in training the sum of `losses`), logits [B, classes], features [B, D],
            hidden_states.
        """
        hidden = self.model(
            pixel_values=pixel_values, inputs_embeds=inputs_embeds, output_hidden_states=bool(output_hidden_states)
        )
        x = hidden.last_hidden_state
        features = x[:, -1] if self.class_token else x.mean(1)
        logits = self.head(features)
        loss, losses = None, None
        if labels is not None:
            wide = torch.promote_types(logits.dtype, torch.float32)
            cross_entropy = functional.cross_entropy(logits.to(wide), labels)
            loss = cross_entropy
            if hidden.losses is not None:
                loss = sum(hidden.losses.values(), cross_entropy)
                losses = {"cross_entropy": cross_entropy.detach(), **hidden.losses}
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=hidden.hidden_states, features=features, losses=losses
        )
