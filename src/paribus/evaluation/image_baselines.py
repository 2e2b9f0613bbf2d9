"""Classifiers of images that look at pixels alone; what a model must beat."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_IMAGES_AT_ONCE = 100
_RIDGE = 0.1


def majority_class(classes: Tensor, num_images: int) -> Tensor:
    """The commonest of the training images' `classes` (the first of equals), for every image: [num_images]."""
    return classes.bincount().argmax().expand(num_images)


def nearest_image(pixels: Tensor, classes: Tensor, asked: Tensor) -> Tensor:
    """The class of the training image at the least Euclidean distance (the first of equals).

    Args:
        pixels: training images [M, channels, size, size].
        classes: theirs [M].
        asked: images to classify [N, channels, size, size].

    Returns:
        [N].
    """
    known = pixels.flatten(1)
    return torch.cat([classes[torch.cdist(x, known).argmin(1)] for x in asked.flatten(1).split(_IMAGES_AT_ONCE)])


def ridge_classifier(pixels: Tensor, classes: Tensor, asked: Tensor) -> Tensor:
    """The class with the largest output of a linear map of the pixels, fitted in closed form.

        W = (XᵀX + λ I)⁻¹ XᵀY,   λ = 0.1 tr(XᵀX) / P

    X are the M training images of P pixels and Y their classes, one of them 1 and the others 0, both less their means
    (Hoerl and Kennard 1970). Arguments and answer are those of `nearest_image`.
    """
    X = pixels.flatten(1).double()
    Y = functional.one_hot(classes).double()
    mean = X.mean(0)
    X = X - mean
    gram = X.T @ X
    gram.diagonal().add_(_RIDGE * gram.trace() / len(gram))
    W = torch.linalg.solve(gram, X.T @ (Y - Y.mean(0)))
    return ((asked.flatten(1).double() - mean) @ W + Y.mean(0)).argmax(1)
