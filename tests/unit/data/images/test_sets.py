"""Every embedded set of images: what it holds, that it is read from files, and that nothing leaks between splits."""

from __future__ import annotations

import builtins
from itertools import islice, takewhile
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont
from scipy.ndimage import binary_dilation
from sklearn.datasets import load_digits

from paribus.data.images import source as source_module
from paribus.data.images.image_set import find_source
from paribus.data.images.sets import glyphs, textures
from paribus.data.images.source import EmbeddedImages, registry
from paribus.data.images.splits import SPLITS, split_of
from tests.unit.data.images.conftest import Embedded

NAMES = registry().names()


@pytest.mark.parametrize("name", NAMES)
def test_every_set_has_enough_of_each_class_in_each_split(name: str, embedded: Embedded) -> None:
    prepared = embedded(name)
    assert len(prepared.class_names) >= 2
    assert prepared.manifest["licence"] and prepared.manifest["version"]
    for split in SPLITS:
        pixels, counts = prepared.pixels(split), np.bincount(prepared.classes(split))
        assert len(pixels) == counts.sum() >= 100
        assert len(counts) == len(prepared.class_names) and counts.min() >= 4
    totals = np.sum([told["of_each_class"] for told in prepared.manifest["splits"].values()], axis=0)
    assert totals.max() <= 4 * totals.min(), "balanced enough that guessing the commonest class is no use"
    assert prepared.pixels("train")[:500].std() > 30, "something is to be seen"


@pytest.mark.parametrize("name", NAMES)
def test_the_package_is_not_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    really_import = builtins.__import__

    def refuse(module: str, *rest: Any) -> Any:
        assert module.partition(".")[0] not in ("matplotlib", "mlxtend", "skimage", "sklearn")
        return really_import(module, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    pictures = find_source(name).pictures()
    first = next(pictures)
    assert first.pixels.dtype == np.uint8
    pictures.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_without_its_package_a_set_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "find_spec", lambda module: None)
    package = next(iter(registry().component(name, EmbeddedImages).packages.values()))
    message = rf'images \'{name}\' .* package {package}, which is missing; run: pip install "paribus\[image\]"'
    with pytest.raises(ValueError, match=message):
        find_source(name).identity()
    with pytest.raises(ValueError, match=message):
        next(iter(find_source(name).pictures()))


@pytest.mark.parametrize(("name", "height", "width"), [("chelsea", 300, 451), ("retina", 1411, 1411)])
def test_textures_of_different_splits_neither_overlap_nor_touch(name: str, height: int, width: int) -> None:
    """Every pixel that a patch shows is marked; within 8 pixels of those of one split none of another is."""
    marked = {split: np.zeros((height, width), dtype=bool) for split in SPLITS}
    for region, top, left in textures.regions(name, height, width):
        for down, across in textures.corners(region):
            y, x = top + down, left + across
            assert y + 32 <= height and x + 32 <= width
            marked[split_of(region)][y : y + 32, x : x + 32] = True
    for split, own in marked.items():
        assert own.any()
        near = binary_dilation(own, np.ones((3, 3)), iterations=8)
        for other in set(SPLITS) - {split}:
            assert not (near & marked[other]).any()


def test_textures_are_where_their_region_says() -> None:
    """Training regions give 25 overlapping patches, held-out ones four that do not overlap."""
    by_region: dict[str, list[np.ndarray]] = {}
    for picture in takewhile(lambda picture: picture.class_index == 0, find_source("textures").pictures()):
        by_region.setdefault(str(picture.group), []).append(picture.pixels)
    (skimage, _) = textures.Textures().folders()
    astronaut = np.asarray(Image.open(skimage / "data" / "astronaut.png"))
    for region, patches in by_region.items():
        _, top, left = region.split()
        stride, side = (8, 5) if split_of(region) == "train" else (32, 2)
        assert len(patches) == side * side
        for number, patch in enumerate(patches):
            y, x = int(top) + stride * (number // side), int(left) + stride * (number % side)
            assert np.array_equal(patch, astronaut[y : y + 32, x : x + 32])
    assert len({split_of(region) for region in by_region}) == 3


@pytest.mark.parametrize("name", [*glyphs.FONTS])
def test_no_letter_is_cut(name: str) -> None:
    """The ink inside the image is all the ink there is; the largest letters come nearest to the edge."""
    matplotlib, _ = glyphs.Glyphs().folders()
    path = str(matplotlib / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf")
    font = ImageFont.truetype(path, max(glyphs.HEIGHTS), layout_engine=ImageFont.Layout.BASIC)
    shown = set()
    for letter in glyphs.LETTERS + glyphs.LETTERS.lower():
        pixels = glyphs.drawn(letter, font, f"any {letter}")
        ink = sum(bytes(font.getmask(letter)))
        assert pixels.shape == (28, 28, 3)
        assert pixels[..., 0].sum(dtype=int) == ink > 1_000
        shown.add(pixels.tobytes())
    assert len(shown) == 52


@pytest.mark.parametrize("extent", range(31))
def test_a_letter_is_placed_near_the_middle(extent: int) -> None:
    places = {glyphs.place(extent, number) for number in range(256)}
    middle = (28 - extent) // 2
    inside = {middle + shift for shift in (-2, -1, 0, 1, 2) if 0 <= middle + shift <= 28 - extent}
    assert places == (inside or {0})


def test_a_shape_is_the_group_of_a_glyph() -> None:
    pictures = list(islice(find_source("glyphs").pictures(), 104))
    assert [picture.group for picture in pictures[:2]] == ["DejaVuSans A", "DejaVuSans B"]
    assert pictures[0].group == pictures[52].group and not np.array_equal(pictures[0].pixels, pictures[52].pixels)
    assert pictures[26].group == "DejaVuSans a" and pictures[26].class_index == 0


def test_digits_are_those_of_scikit_learn() -> None:
    theirs = load_digits()
    pictures = list(find_source("digits").pictures())
    assert [picture.class_index for picture in pictures] == theirs.target.tolist()
    shades = np.stack([picture.pixels[..., 1] for picture in pictures])
    assert np.abs(shades / 255 * 16 - theirs.images).max() <= 0.5 / 255 * 16
    assert len(np.unique(shades)) == 17
