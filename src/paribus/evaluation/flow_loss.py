"""How well a velocity is known on held-out images: the same noise and times for every model.

x_t = (1 - t) ε + t x,   v = x - ε,   cost of an image x = the mean over pixels, ε and t of (u(x_t, t) - v)²
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

POINTS = 4
"""Of each image; each has noise of its own, and a time in its own quarter of 0 to 1."""
_IMAGES_AT_ONCE = 64

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""velocity(x_t [B, channels, size, size], t [B], classes [B]), as x_t."""


@torch.no_grad()
def flow_losses(velocity: Velocity, pixels: Tensor, classes: Tensor) -> Tensor:
    """The cost of each image: float64 [N].

    Args:
        pixels: [N, channels, size, size].
        classes: [N].
    """
    costs = []
    for x, t, v, of in _points(pixels, classes):
        squares = (velocity(x, t, of).float() - v).square().flatten(1).double()
        costs.append(squares.mean(1).unflatten(0, (-1, POINTS)).mean(1))
    return torch.cat(costs)


def _points(pixels: Tensor, classes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """x_t, t, v and classes of some images at once; the points of one image are together."""
    for number, (image, of) in enumerate(
        zip(pixels.split(_IMAGES_AT_ONCE), classes.split(_IMAGES_AT_ONCE), strict=True)
    ):
        generator = torch.Generator().manual_seed(number)
        x = image.repeat_interleave(POINTS, 0)
        noise = torch.randn(x.shape, generator=generator)
        quarters = torch.arange(POINTS).repeat(len(image))
        t = (quarters + torch.rand(len(x), generator=generator)) / POINTS
        yield on_the_way(x, noise, t), t, x - noise, of.repeat_interleave(POINTS)


def on_the_way(pixels: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """x_t: [B, channels, size, size]."""
    t = times[:, None, None, None]
    return (1 - t) * noise + t * pixels


def pixels_alone(known: Tensor) -> Velocity:
    """The best velocity if every pixel were normal by itself, with the mean m and variance s² of the `known` images.

    E[v | x_t] = m + (t s² - (1 - t)) / (t² s² + (1 - t)²) (x_t - t m)
    """
    mean, variance = known.mean(0), known.var(0)

    def velocity(x: Tensor, times: Tensor, classes: Tensor) -> Tensor:
        t = times[:, None, None, None]
        return mean + (t * variance - (1 - t)) / (t**2 * variance + (1 - t) ** 2) * (x - t * mean)

    return velocity


def pixels_together(known: Tensor) -> Velocity:
    """The best velocity if images were normal, with the mean m and covariance C of the `known` ones: an affine map.

    E[v | x_t] = m + (t C - (1 - t)) (t² C + (1 - t)²)⁻¹ (x_t - t m)
    """
    flat = known.flatten(1).double()
    mean = flat.mean(0)
    values, directions = torch.linalg.eigh(torch.cov(flat.T))
    values = values.clamp(min=0)

    def velocity(x: Tensor, times: Tensor, classes: Tensor) -> Tensor:
        t = times[:, None].double()
        along = (x.flatten(1).double() - t * mean) @ directions
        factors = (t * values - (1 - t)) / (t**2 * values + (1 - t) ** 2)
        found = mean + (factors * along) @ directions.T
        return found.to(x.dtype).view_as(x)

    return velocity
