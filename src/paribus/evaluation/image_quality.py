"""How good generated images are: far from true ones as a set, or too near to single ones."""

from __future__ import annotations

import torch
from torch import Tensor

_IMAGES_AT_ONCE = 100


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The squared Fréchet distance of two sets of features, each taken as normal (Heusel et al. 2017).

        d² = ‖m_a - m_b‖² + tr(C_a + C_b - 2 (C_a C_b)^½)

    arXiv:1706.08500, equation 6; C are covariances over N - 1. C_a C_b has the eigenvalues of the symmetric
    C_a^½ C_b C_a^½, whose roots add up to the trace of the root. In float64.
    Differs: the features are those of the judge of the same images, not of Inception, and so are the numbers.

    Args:
        a: [N, D], N of at least 2.
        b: [M, D].
    """
    a, b = a.double(), b.double()
    covariance_a, covariance_b = (torch.atleast_2d(torch.cov(x.T)) for x in (a, b))
    root = _root(covariance_a)
    overlap = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, float(apart + covariance_a.trace() + covariance_b.trace() - 2 * overlap))


def _root(matrix: Tensor) -> Tensor:
    """The positive root of a symmetric matrix without negative eigenvalues, but for rounding."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def nearest_images(images: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The Euclidean distance of each image to the nearest of `known`, and which that is (the first of equals).

    Args:
        images: [N, channels, size, size].
        known: [M, channels, size, size].

    Returns:
        Distances [N], indices [N].
    """
    flat = known.flatten(1)
    nearest = torch.cat([torch.cdist(x, flat).argmin(1) for x in images.flatten(1).split(_IMAGES_AT_ONCE)])
    # Anew for the pairs found: by matrix products, the distance of two equal images is not quite zero.
    return (images - known[nearest]).flatten(1).norm(dim=1), nearest


def share_below(values: Tensor, others: Tensor, quantile: float) -> tuple[float, float]:
    """The share of `values` below a quantile of `others`, and that quantile."""
    threshold = float(others.double().quantile(quantile))
    return float((values < threshold).double().mean()), threshold
