"""The cost of a velocity beside loops, and velocities of normal images beside the best affine map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paribus.evaluation.flow_loss import POINTS, flow_losses, on_the_way, pixels_alone, pixels_together


def images(N: int, size: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(N, size**2, generator=generator) @ torch.randn(size**2, size**2, generator=generator)
    return (0.3 * mixed + 0.2).view(N, 1, size, size), torch.arange(N) % 3


def test_costs_are_means_over_points_and_pixels() -> None:
    pixels, classes = images(70)
    seen: list[tuple[Tensor, ...]] = []

    def velocity(x: Tensor, t: Tensor, of: Tensor) -> Tensor:
        seen.append((x, t, of))
        return x * t[:, None, None, None] + of[:, None, None, None]

    found = flow_losses(velocity, pixels, classes)
    x, t, of = (torch.cat(parts) for parts in zip(*seen, strict=True))
    for number, (image, own) in enumerate(zip(pixels, classes, strict=True)):
        costs = []
        for point in range(POINTS):
            at = number * POINTS + point
            assert of[at] == own
            assert point / POINTS <= t[at] < (point + 1) / POINTS, "each in its own part of the time"
            noise = (x[at] - t[at] * image) / (1 - t[at])
            costs.append((x[at] * t[at] + own - (image - noise)).square().mean())
        assert float(found[number]) == pytest.approx(float(torch.stack(costs).mean()), rel=1e-3)


def test_noise_is_normal_of_each_point_and_the_same_for_every_model() -> None:
    pixels, classes = images(300)
    points: list[Tensor] = []

    def velocity(x: Tensor, t: Tensor, of: Tensor) -> Tensor:
        points.append(x)
        return x

    first, second = (flow_losses(velocity, pixels, classes) for _ in range(2))
    assert torch.equal(first, second)
    noise: list[Tensor] = []
    flow_losses(lambda x, t, of: noise.append(x / (1 - t[:, None, None, None])) or x, 0 * pixels, classes)  # type: ignore[func-returns-value]
    drawn = torch.cat(noise).flatten()
    assert abs(float(drawn.mean())) < 0.05
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)
    assert len(drawn.unique()) > 0.99 * len(drawn), "every pixel of every point has noise of its own"


def test_few_images_are_measured_as_among_many() -> None:
    pixels, classes = images(100)

    def velocity(x: Tensor, t: Tensor, of: Tensor) -> Tensor:
        return 0 * x

    assert flow_losses(velocity, pixels, classes)[:64].equal(flow_losses(velocity, pixels[:64], classes[:64]))


@pytest.mark.parametrize("together", [False, True])
def test_velocities_of_normal_images_are_the_best_affine_map(together: bool) -> None:
    known = images(200)[0].double()
    flat = known.flatten(1)
    mean, covariance = flat.mean(0), torch.cov(flat.T)
    if not together:
        covariance = covariance.diag().diag()
    one = torch.eye(len(covariance), dtype=torch.float64)
    x, times = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0]).double()
    found = (pixels_together if together else pixels_alone)(known)(x, times, torch.zeros(5))
    for row, t in enumerate(times):
        with_velocity = t * covariance - (1 - t) * one  # Cov(x - ε, x_t)
        own = t**2 * covariance + (1 - t) ** 2 * one  # Cov(x_t, x_t)
        expected = mean + with_velocity @ torch.linalg.solve(own, x[row].flatten() - t * mean)
        torch.testing.assert_close(found[row].flatten(), expected, rtol=1e-9, atol=1e-9)


def test_the_way_begins_at_noise_and_ends_at_the_image() -> None:
    pixels, noise = images(3)[0], torch.randn(3, 1, 2, 2)
    found = on_the_way(pixels, noise, torch.tensor([0.0, 1.0, 0.25]))
    torch.testing.assert_close(found, torch.stack([noise[0], pixels[1], 0.75 * noise[2] + 0.25 * pixels[2]]))
