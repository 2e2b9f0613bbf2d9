"""Distances of images and of their features, beside plain forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from paribus.evaluation.image_quality import frechet_distance, nearest_images, share_below


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("N", "M", "D"), [(40, 60, 7), (5, 9, 12), (30, 30, 1)])
def test_frechet_distance_is_its_formula(N: int, M: int, D: int) -> None:
    a, b = draw(N, D) @ draw(D, D, seed=1), 0.5 * draw(M, D, seed=2) + 1
    covariances = [np.atleast_2d(np.cov(x.numpy().T)) for x in (a, b)]
    # A little more on the diagonal, which the root of a matrix without full rank needs; it changes little.
    root = scipy.linalg.sqrtm((covariances[0] + 1e-13 * np.eye(D)) @ (covariances[1] + 1e-13 * np.eye(D)))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-5)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-5)


def test_frechet_distance_of_what_is_known() -> None:
    a = draw(50, 6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(6 * 2**2)
    centred = a - a.mean(0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * float(torch.cov(a.T).trace()))


def test_nearest_images_are_found_one_by_one() -> None:
    images, known = draw(230, 2, 3, 3).float(), draw(57, 2, 3, 3, seed=1).float()
    known[5] = images[7]
    distances, nearest = nearest_images(images, known)
    for number, image in enumerate(images):
        apart = [float((image - other).square().sum().sqrt()) for other in known]
        assert int(nearest[number]) == apart.index(min(apart))
        assert float(distances[number]) == pytest.approx(min(apart))
    assert float(distances[7]) == 0, "an equal image is at no distance at all"


def test_a_share_below_a_quantile() -> None:
    share, threshold = share_below(torch.tensor([0.0, 1.0, 50.0, 99.5]), torch.arange(101.0), 0.25)
    assert (share, threshold) == (0.5, 25.0)
