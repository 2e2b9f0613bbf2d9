"""Pictures as arrays: what each kind of file shows, and how it becomes a square."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paribus.data.images.pixels import decoded, squared
from tests.unit.data.images.conftest import noise


def stored(picture: Image.Image, kind: str = "PNG", **settings: Any) -> BytesIO:
    file = BytesIO()
    picture.save(file, kind, **settings)
    file.seek(0)
    return file


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK"])
def test_kinds_of_pictures(mode: str) -> None:
    picture = Image.fromarray(noise(1, size=5)[0]).convert(mode)
    file = stored(picture, "TIFF")
    assert np.array_equal(decoded(file, "it"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_black(mode: str) -> None:
    picture = Image.new("RGBA", (2, 1), (200, 200, 200, 255))
    picture.putpixel((1, 0), (200, 200, 200, 0))
    if mode == "P":
        picture = Image.new("P", (2, 1), 1)
        picture.putpalette([9, 9, 9, 200, 200, 200])
        picture.putpixel((1, 0), 0)
        file = stored(picture, transparency=0)
    else:
        file = stored(picture.convert(mode))
    assert decoded(file, "it").tolist() == [[[200, 200, 200], [0, 0, 0]]]


def test_a_photograph_is_turned_as_its_camera_noted() -> None:
    upright = noise(1, size=3)[0][:, :2]
    exif = Image.Exif()
    exif[0x0112] = 6  # has to be turned clockwise to be seen as it was
    file = stored(Image.fromarray(np.ascontiguousarray(np.rot90(upright))), exif=exif)
    assert np.array_equal(decoded(file, "it"), upright)


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_deep_pixels_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"it cannot be read as a picture: its pixels have the mode {mode}; 8 bits"):
        decoded(stored(Image.new(mode, (2, 2)), "TIFF"), "it")


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match=r'reading it needs pillow; run: pip install "paribus\[image\]"'):
        decoded(tmp_path / "a.png", "it")
    with pytest.raises(ValueError, match="resizing pictures from 4 to 2 pixels needs pillow"):
        squared(noise(1)[0], 2)
    assert squared(noise(1)[0], 4).shape == (4, 4, 3), "what has the wanted size needs no Pillow"


@pytest.mark.parametrize(("height", "width", "top", "left"), [(7, 4, 1, 0), (4, 7, 0, 1), (4, 6, 0, 1), (4, 4, 0, 0)])
def test_the_central_square_is_kept(height: int, width: int, top: int, left: int) -> None:
    pixels = noise(1, size=7)[0][:height, :width]
    assert np.array_equal(squared(pixels, 4), pixels[top : top + 4, left : left + 4])


def test_a_smaller_picture_is_an_average() -> None:
    """A chessboard whose fields are single pixels becomes grey, not black or white."""
    board = np.repeat((np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=-1)
    small = squared(board, 4)
    assert small.shape == (4, 4, 3) and small.dtype == np.uint8
    assert np.abs(small.astype(int) - 127).max() <= 8
