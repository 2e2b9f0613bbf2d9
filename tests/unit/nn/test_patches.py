"""Patches: which pixel goes where, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paribus.nn.patches import ClassToken, ImageConfig, PatchEmbedding, from_patches, to_patches

SIZES = [(6, 2, 3), (4, 4, 1), (5, 1, 2), (8, 4, 3)]


@pytest.mark.parametrize(("size", "patch_size", "channels"), SIZES)
def test_token_and_place_follow_from_the_pixel(size: int, patch_size: int, channels: int) -> None:
    images = torch.randn(2, channels, size, size)
    patches = to_patches(images, patch_size)
    side = size // patch_size
    assert patches.shape == (2, side * side, channels * patch_size**2)
    for channel in range(channels):
        for row in range(size):
            for column in range(size):
                token = row // patch_size * side + column // patch_size
                place = (channel * patch_size + row % patch_size) * patch_size + column % patch_size
                assert torch.equal(patches[:, token, place], images[:, channel, row, column])


@pytest.mark.parametrize(("size", "patch_size", "channels"), SIZES)
def test_patches_become_the_image_again(size: int, patch_size: int, channels: int) -> None:
    config = ImageConfig(size=size, patch_size=patch_size, num_channels=channels)
    images = torch.randn(3, channels, size, size)
    patches = to_patches(images, patch_size)
    assert patches.shape[1:] == (config.num_tokens, config.patch_values)
    assert torch.equal(from_patches(patches, config), images)


def test_the_class_token_counts_and_stands_behind() -> None:
    assert ImageConfig(size=6, patch_size=2).num_tokens == 9
    assert ImageConfig(size=6, patch_size=2, class_token=True).num_tokens == 10
    token = ClassToken(4)
    token.reset_parameters()
    x = torch.randn(2, 3, 4)
    y = token(x)
    assert torch.equal(y[:, :3], x)
    assert torch.equal(y[:, 3], token.vector.expand(2, 4))


def test_the_embedding_is_one_map_of_each_patch() -> None:
    embedding = PatchEmbedding(ImageConfig(size=4, patch_size=2, num_channels=2), width=5)
    torch.nn.init.normal_(embedding.projection.weight)
    torch.nn.init.normal_(embedding.projection.bias)
    images = torch.randn(2, 2, 4, 4)
    corner = images[:, :, 2:, :2].flatten(1)
    expected = corner @ embedding.projection.weight.T + embedding.projection.bias
    torch.testing.assert_close(embedding(images)[:, 2], expected)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 2, 4, 6), (2, 4, 4), (2, 2, 8, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    embedding = PatchEmbedding(ImageConfig(size=4, patch_size=2, num_channels=2), width=5)
    with pytest.raises(ValueError, match=r"pixel_values has shape \[2, .*\]; \[B, 2, 4, 4\] is needed"):
        embedding(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size is 0; at least 1"),
        ({"patch_size": 0}, "patch_size is 0; at least 1"),
        ({"num_channels": 0}, "num_channels is 0; at least 1"),
        ({"size": 28, "patch_size": 5}, "patch_size is 5; a divisor of size 28"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageConfig(**settings)
