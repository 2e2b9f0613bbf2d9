"""Batches of images: a function of settings and step, each image once an epoch, augmented exactly as told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from paribus.data.images.batches import ImageBatches, as_tensor, augment, held_out_images
from paribus.data.images.spec import Images
from tests.unit.data.images.conftest import noise


def batches_of(cache: Path, num_channels: int = 3, **settings: int | bool) -> ImageBatches:
    return ImageBatches(Images("digits", **settings), 8, num_channels, cache)  # type: ignore[arg-type]


def test_a_batch_depends_on_settings_and_step_alone(images_cache: Path) -> None:
    first = batches_of(images_cache, batch_size=7, crop=1, flip=True)
    digests = [first.digest(first.batch(step)) for step in range(200)]
    assert len(set(digests)) == 200
    again = batches_of(images_cache, batch_size=7, crop=1, flip=True)
    for step in (199, 3, 120, 0):
        assert again.digest(again.batch(step)) == digests[step]
    other = batches_of(images_cache, batch_size=7, crop=1, flip=True, seed=1)
    assert other.digest(other.batch(0)) != digests[0]


def test_batches_never_change(images_cache: Path) -> None:
    """What a seed means is part of every result."""
    batches = batches_of(images_cache, batch_size=7, crop=1, flip=True)
    assert [batches.image(number) for number in range(4)] == [730, 1026, 398, 905]
    assert batches.digest(batches.batch(3)) == "ea861640737fc1dc"


def test_an_epoch_visits_every_image_once(images_cache: Path) -> None:
    batches = batches_of(images_cache, batch_size=50)
    size = len(batches.classes)
    assert size % 50, "an epoch ends inside a batch"
    steps = -(-2 * size // 50)
    rows = torch.cat([batches.batch(step).pixels for step in range(steps)])[: 2 * size]
    classes = torch.cat([batches.batch(step).classes for step in range(steps)])[: 2 * size]
    train = held_out_images(batches.data, "train", 8, 3, images_cache, None)
    expected = Counter(zip(map(bytes, train.pixels.numpy()), train.classes.tolist(), strict=True))
    epochs = []
    for epoch in (slice(0, size), slice(size, 2 * size)):
        seen = list(zip(map(bytes, rows[epoch].numpy()), classes[epoch].tolist(), strict=True))
        assert Counter(seen) == expected
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_what_is_told_of_the_data(images_cache: Path) -> None:
    batches = batches_of(images_cache, batch_size=10)
    assert batches.class_names == tuple("0123456789")
    assert batches.batch(0).counts == {"digits": 10}
    assert batches.epochs_at(3) == {"digits": 30 / len(batches.classes)}
    told = json.loads(json.dumps(batches.manifests()))["corpora"]["digits"]
    assert told["sha256"] == batches.set.manifest_hash
    assert set(told) == {"sha256", "version", "licence", "size", "classes", "splits"}


@pytest.mark.parametrize("num_channels", [1, 3])
def test_pixels_run_from_minus_one_to_one(num_channels: int) -> None:
    pixels = np.array([[[[0, 0, 0], [255, 255, 255]], [[51, 102, 204], [7, 7, 7]]]], dtype=np.uint8)
    converted = as_tensor(pixels, num_channels)
    grey = round(0.299 * 51 + 0.587 * 102 + 0.114 * 204)
    colours = {1: [[[0, 255], [grey, 7]]], 3: [[[0, 255], [51, 7]], [[0, 255], [102, 7]], [[0, 255], [204, 7]]]}
    expected = torch.tensor([colours[num_channels]], dtype=torch.float64) / 127.5 - 1
    assert converted.dtype == torch.float32 and converted.is_contiguous()
    torch.testing.assert_close(converted.double(), expected, rtol=0, atol=1e-7)


def test_grey_images_lose_nothing_as_one_channel() -> None:
    shades = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    assert torch.equal(as_tensor(shades, 1)[:, 0], as_tensor(shades, 3)[:, 1])


def cut(image: np.ndarray, crop: int, top: int, left: int, flip: bool) -> np.ndarray:
    """Pixel by pixel: what is shown when a window of the image's size moves over it, and is mirrored."""
    shown = np.zeros_like(image)
    height, width, _ = image.shape
    for y, x in np.ndindex(height, width):
        row, column = y + top - crop, x + left - crop
        if 0 <= row < height and 0 <= column < width:
            shown[y, width - 1 - x if flip else x] = image[row, column]
    return shown


@pytest.mark.parametrize(("crop", "flip"), [(0, False), (1, False), (0, True), (1, True), (2, True)])
def test_augmentation(crop: int, flip: bool) -> None:
    """Each result is a crop, mirrored or not; all of them occur, about equally often."""
    image = noise(1, size=5)
    places = range(2 * crop + 1)
    choices = [(top, left, flipped) for top in places for left in places for flipped in {False, flip}]
    known = {cut(image[0], crop, *choice).tobytes(): choice for choice in choices}
    assert len(known) == len(choices)
    settings = Images("digits", crop=crop, flip=flip)
    drawn = 40 * len(choices)
    together = augment(image.repeat(drawn, axis=0), settings, 0)
    counts = Counter(known[shown.tobytes()] for shown in together)
    assert set(counts) == set(choices)
    assert all(15 < count < 70 for count in counts.values()) or len(choices) == 1
    assert np.array_equal(augment(image, settings, 11)[0], together[11])


def test_batches_are_augmented_by_the_number_of_their_images(images_cache: Path) -> None:
    plain, augmented = batches_of(images_cache, batch_size=6), batches_of(images_cache, batch_size=6, crop=2, flip=True)
    for step in (0, 400):
        images = [plain.image(6 * step + row) for row in range(6)]
        expected = augment(plain.pixels[images], augmented.data, 6 * step)
        assert torch.equal(plain.batch(step).pixels, as_tensor(plain.pixels[images], 3))
        assert torch.equal(augmented.batch(step).pixels, as_tensor(expected, 3))


def test_held_out_images(images_cache: Path) -> None:
    settings = Images("digits", crop=2, flip=True)
    found = {split: held_out_images(settings, split, 8, 1, images_cache, None) for split in ("validation", "test")}
    for split, images in found.items():
        assert images.pixels.shape[1:] == (1, 8, 8) and len(images.pixels) == len(images.classes)
        assert images.class_names == tuple("0123456789")
        few = held_out_images(settings, split, 8, 1, images_cache, 9)
        assert torch.equal(few.pixels, images.pixels[:9]) and torch.equal(few.classes, images.classes[:9])
        assert few.sha256 != images.sha256
        assert images.sha256 == held_out_images(Images("digits", seed=3), split, 8, 1, images_cache, None).sha256
        assert images.sha256 != held_out_images(settings, split, 8, 3, images_cache, None).sha256
        assert images.sha256 != held_out_images(settings, split, 4, 1, images_cache, None).sha256
    assert found["test"].sha256 != found["validation"].sha256


def test_no_training_image_is_held_out(images_cache: Path) -> None:
    settings = Images("digits")
    splits = [held_out_images(settings, split, 8, 1, images_cache, None) for split in ("train", "validation", "test")]
    images = [bytes(image) for split in splits for image in split.pixels.numpy()]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize(
    ("settings", "num_channels", "message"),
    [
        ({"crop": 8}, 3, "data: crop is 8; less than image.size, which is 8, is needed"),
        ({}, 2, r"image.num_channels is 2; 1 \(grey\) or 3 \(colour\) is needed"),
    ],
)
def test_settings_that_do_not_fit(
    images_cache: Path, settings: dict[str, int], num_channels: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        batches_of(images_cache, num_channels, **settings)


@pytest.mark.parametrize(("key", "value"), [("batch_size", 0), ("crop", -1)])
def test_numbers_that_are_too_small(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"data: {key} is {value}; at least"):
        Images("digits", **{key: value})  # type: ignore[arg-type]
