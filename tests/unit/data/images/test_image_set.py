"""Prepared images: unique, split by their content whatever their order, kept and mended on disk."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from paribus.data.images.image_set import ImageSet, find_source, prepare, prepare_source
from paribus.data.images.source import Picture
from paribus.data.images.splits import SPLITS, pixel_hash, split_of
from tests.unit.data.images.conftest import Given, alternating, noise


def contents(images: ImageSet) -> dict[str, list[tuple[bytes, int]]]:
    """By split, the pixels and class of each image."""
    return {
        split: [
            (image.tobytes(), int(of)) for image, of in zip(images.pixels(split), images.classes(split), strict=True)
        ]
        for split in SPLITS
    }


def test_every_image_is_in_the_split_of_its_pixels(cache: Path) -> None:
    pixels = noise(200)
    prepared = prepare_source(Given(alternating(pixels)), 4, cache / "set")
    expected: dict[str, list[tuple[bytes, int]]] = {split: [] for split in SPLITS}
    for number in sorted(range(200), key=lambda number: pixel_hash(pixels[number])):
        expected[split_of(pixel_hash(pixels[number]))].append((pixels[number].tobytes(), number % 2))
    assert contents(prepared) == expected
    assert {split: told["images"] for split, told in prepared.manifest["splits"].items()} == {
        split: len(of) for split, of in expected.items()
    }
    assert prepared.manifest["repeated"] == 0
    assert prepared.class_names == ("round", "square")
    assert prepared.pixels("train").dtype == np.uint8 and prepared.classes("train").dtype == np.int64


def test_the_order_of_the_source_changes_nothing(cache: Path) -> None:
    pictures = alternating(noise(200))
    pictures += pictures[:20]
    sorted_set = prepare_source(Given(pictures), 4, cache / "a")
    random.Random(0).shuffle(pictures)
    shuffled = prepare_source(Given(pictures), 4, cache / "b")
    assert shuffled.manifest == sorted_set.manifest
    assert shuffled.manifest_hash == sorted_set.manifest_hash
    renamed = prepare_source(Given(pictures, ("round", "oval")), 4, cache / "c")
    assert renamed.manifest_hash != sorted_set.manifest_hash


def test_further_images_move_none_to_another_split(cache: Path) -> None:
    pictures = alternating(noise(200))
    before = contents(prepare_source(Given(pictures[:120]), 4, cache / "a"))
    after = contents(prepare_source(Given(pictures), 4, cache / "b"))
    for split in SPLITS:
        assert set(before[split]) < set(after[split])


def test_the_split_does_not_depend_on_the_size(cache: Path) -> None:
    pictures = alternating(noise(120, size=6))
    of_size = {}
    for size in (6, 3):
        prepared = prepare_source(Given(pictures), size, cache / str(size))
        assert prepared.pixels("train").shape[1:] == (size, size, 3)
        of_size[size] = prepared.manifest["splits"]
    assert of_size[6] == of_size[3]


def test_a_group_stays_together(cache: Path) -> None:
    pixels = noise(300)
    pictures = [Picture(image, number % 2, f"group {number // 5}") for number, image in enumerate(pixels)]
    prepared = contents(prepare_source(Given(pictures), 4, cache / "set"))
    splits = {image: split for split, of in prepared.items() for image, _ in of}
    for start in range(0, 300, 5):
        assert {splits[image.tobytes()] for image in pixels[start : start + 5]} == {split_of(f"group {start // 5}")}


def test_equal_images_are_kept_once(cache: Path) -> None:
    pixels = noise(100)
    pictures = alternating(pixels)
    alone = prepare_source(Given(pictures), 4, cache / "a")
    repeated = prepare_source(Given([*pictures, *pictures[10:30]]), 4, cache / "b")
    assert repeated.manifest["repeated"] == 20
    assert contents(repeated) == contents(alone)


def test_equal_images_of_two_classes_are_left_out(cache: Path) -> None:
    pictures = alternating(noise(100))
    contradiction = Picture(pictures[0].pixels, 1 - pictures[0].class_index)
    without = prepare_source(Given(pictures[1:]), 4, cache / "a")
    prepared = prepare_source(Given([*pictures, contradiction]), 4, cache / "b")
    assert prepared.manifest["repeated"] == 2
    assert contents(prepared) == contents(without)


def test_images_that_become_equal_are_kept_once(cache: Path) -> None:
    """Two pictures whose central squares are equal would else lie in two splits."""
    pictures = alternating(noise(100))
    widened = [Picture(np.concatenate([bar, pictures[0].pixels, bar], axis=1), 0) for bar in noise(20, seed=1)]
    widened.sort(key=lambda picture: split_of(pixel_hash(picture.pixels)))
    assert split_of(pixel_hash(widened[0].pixels)) != split_of(pixel_hash(widened[-1].pixels))
    first, second = (
        prepare_source(Given([*order, *pictures]), 4, cache / name)
        for name, order in (("a", widened), ("b", widened[::-1]))
    )
    assert first.manifest == second.manifest
    assert first.manifest["repeated"] == 20
    found = [image for of in contents(first).values() for image, _ in of]
    assert found.count(pictures[0].pixels.tobytes()) == 1


@pytest.mark.parametrize("damage", [None, "train.npy", "test.classes.npy", "manifest.json"])
def test_prepared_images_are_used_again_unless_damaged(cache: Path, damage: str | None) -> None:
    source = Given(alternating(noise(100)))
    before = contents(prepare_source(source, 4, cache / "set"))
    if damage is not None:
        path = cache / "set" / damage
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert contents(prepare_source(source, 4, cache / "set")) == before
    assert source.times_read == (1 if damage is None else 2)
    assert {path.name for path in (cache / "set").iterdir()} == {
        "manifest.json",
        *(f"{split}.npy" for split in SPLITS),
        *(f"{split}.classes.npy" for split in SPLITS),
    }


@pytest.mark.parametrize(
    ("pictures", "class_names", "message"),
    [
        (alternating(noise(9)), ("round",), "one class only, 'round'; two are needed"),
        (alternating(noise(9)), (), "no classes; two are needed"),
        (alternating(noise(99)), ("a", "b", "c"), "of the 0 different images of class 'c' none is in train; about 10"),
        ([], ("a", "b"), "of the 0 different images of class 'a' none is in train"),
        (alternating(noise(4)), ("a", "b"), r"are only 4, none of them in \w+.* about 100 are needed"),
    ],
)
def test_too_few(cache: Path, pictures: list[Picture], class_names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"images 'given'.*{message}"):
        prepare_source(Given(pictures, class_names), 4, cache / "set")
    assert not (cache / "set").exists()


def test_unknown_names(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown images 'digitz' \(and no such folder\); did you mean 'digits'\?"):
        find_source("digitz")
    with pytest.raises(ValueError, match="images 'missing/': there is no folder missing"):
        find_source("missing/")
    with pytest.raises(ValueError, match="unknown split 'tset'; did you mean 'test'"):
        prepare("digits", 8, cache).pixels("tset")


def test_nothing_is_enlarged(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"images 'digits' are 8x8 pixels; image.size is 9, and at most 8 is allowed"):
        prepare("digits", 9, cache)
