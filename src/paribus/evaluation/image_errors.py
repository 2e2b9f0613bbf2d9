"""How a model classifies labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from paribus.nn.tasks.image_classification import ParibusForImageClassification

_IMAGES_AT_ONCE = 250


@dataclass(frozen=True)
class ImageErrors:
    """What became of each image, float64 [N] and int64 [N]."""

    errors: Tensor
    """1 where another class than the image's is the likeliest, else 0; NaN where the model's numbers are not finite."""
    nats: Tensor
    """-ln p(class of the image)."""
    predicted: Tensor
    """The likeliest class."""

    @property
    def scores(self) -> dict[str, float]:
        """The means, by the names of metrics."""
        return {"error_rate": self.errors.mean().item(), "cross_entropy": self.nats.mean().item()}


@torch.no_grad()
def image_errors(model: ParibusForImageClassification, pixels: Tensor, classes: Tensor) -> ImageErrors:
    """Classify `pixels` [N, channels, size, size], which belong to `classes` [N]."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    parts = [model(pixel_values=part.to(device)).logits for part in pixels.split(_IMAGES_AT_ONCE)]
    model.train(was_training)
    logits = torch.cat(parts).double().cpu()
    predicted = logits.argmax(1)
    wrong = (predicted != classes).double()
    return ImageErrors(
        errors=wrong.where(logits.isfinite().all(1), torch.nan),
        nats=functional.cross_entropy(logits, classes, reduction="none"),
        predicted=predicted,
    )


def errors_by_class(found: ImageErrors, classes: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Of each class how many images there are and the share misclassified, and what was taken for what: JSON."""
    confusion = torch.zeros(len(names), len(names), dtype=torch.long)
    confusion.index_put_((classes, found.predicted), torch.ones_like(classes), accumulate=True)
    counts = confusion.sum(1)
    right = confusion.diagonal()
    return {
        "classes": {
            name: {"images": int(count), "error_rate": 1 - int(kept) / int(count) if count else None}
            for name, count, kept in zip(names, counts, right, strict=True)
        },
        "confusion": confusion.tolist(),
    }
