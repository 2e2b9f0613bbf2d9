"""Images as one picture to look at."""

from __future__ import annotations

import base64
import io

import torch
from torch import Tensor
from torch.nn import functional

_LEAST_PIXELS = 48
"""Rows and columns that an image has at least in a picture, so that one of 8 x 8 can be seen."""
_GAP = 2


def grid(images: Tensor, columns: int) -> str:
    """A PNG with the images row by row on white, as a ``data:`` URI.

    Small images are enlarged by a whole factor, every pixel to a square.

    Args:
        images: [N, C, height, width] from -1 to 1, which is cut off outside; C is 1 (grey) or 3 (red, green, blue).
        columns: images in one row.

    Raises:
        ValueError: no image, another number of channels, or no column.
    """
    if images.dim() != 4 or len(images) < 1 or images.shape[1] not in (1, 3):
        raise ValueError(f"images has shape {list(images.shape)}; [N, 1 or 3, height, width] with N > 0 is needed")
    if columns < 1:
        raise ValueError(f"columns is {columns}; at least 1 is needed")
    from PIL import Image  # an optional package, which takes its time to import

    pixels = _sheet(images, columns)
    picture = Image.fromarray(pixels[..., 0].numpy() if pixels.shape[-1] == 1 else pixels.numpy())
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _sheet(images: Tensor, columns: int) -> Tensor:
    """uint8 [height, width, C] of the whole picture."""
    N, _, height, width = images.shape
    columns = min(columns, N)
    factor = max(1, -(-_LEAST_PIXELS // max(height, width)))
    large = images.float().repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    framed = functional.pad(large, (_GAP, 0, _GAP, 0), value=1.0)
    blank = framed.new_ones(-N % columns, *framed.shape[1:])
    table = torch.cat([framed, blank]).unflatten(0, (-1, columns))  # rows columns C height width
    sheet = table.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    sheet = functional.pad(sheet, (0, _GAP, 0, _GAP), value=1.0)
    return ((sheet + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
