"""Letters of 28x28 pixels, drawn from 22 fonts, as capitals and small, in four sizes; the class is the letter.

The fonts are those of Matplotlib that have a Latin alphabet (DejaVu, STIX, Computer Modern); FreeType, as it comes with
Pillow, draws them, white on black, the letter at most two pixels beside the middle. All images of one shape (a font's
capital A, say) are in the same split, so that what is held out are shapes that training has not seen in any size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..pixels import grey
from ..source import EmbeddedImages, Picture

SIZE = 28
HEIGHTS = (16, 18, 20, 22)
"""Of a font in pixels: about the distance of two lines."""
SHIFT = 2
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-BoldItalic", "-Italic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "BolIta", "Italic")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)


class Glyphs(EmbeddedImages):
    """Letters of 28x28 pixels, drawn from fonts."""

    licence = "drawn with fonts under the licences of DejaVu, STIX and BaKoMa"
    packages = {"matplotlib": "matplotlib", "PIL": "pillow"}
    size = SIZE
    class_names = tuple(LETTERS)

    def pictures(self) -> Iterator[Picture]:
        matplotlib, _ = self.folders()
        from PIL import ImageFont

        for name in FONTS:
            path = str(matplotlib / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf")
            for height in HEIGHTS:
                # The basic layout is in every build of Pillow, and one letter needs no other.
                font = ImageFont.truetype(path, height, layout_engine=ImageFont.Layout.BASIC)
                for letter in LETTERS + LETTERS.lower():
                    shape = f"{name} {letter}"
                    yield Picture(drawn(letter, font, f"{shape} {height}"), LETTERS.index(letter.upper()), shape)


def drawn(letter: str, font: Any, key: str) -> np.ndarray:
    """A letter as pixels, its box as near to the middle as what `key` decides allows."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(letter)
    across, down = hashlib.sha256(key.encode()).digest()[:2]
    x = place(int(right - left), across)
    y = place(int(bottom - top), down)
    image = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(image).text((x - left, y - top), letter, font=font, fill=255)
    return grey(np.asarray(image))


def place(extent: int, number: int) -> int:
    """Where a box of `extent` pixels begins: in the middle, moved by up to `SHIFT` pixels as far as it stays inside."""
    room = SIZE - extent
    return min(max(room // 2 + number % (2 * SHIFT + 1) - SHIFT, 0), max(room, 0))
