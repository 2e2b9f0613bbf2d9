"""Images as rows of tokens: patches in raster order, each through one linear map, and a class token behind them.

Token t of an image of R x C patches is the patch in row ⌊t / C⌋ and column t mod C, whatever else is in the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Scan = Literal["raster", "alternate", "cross"]


@dataclass(frozen=True)
class ImageConfig:
    """What the images of a model look like, and how they become tokens.

    Raises:
        ValueError: a number below 1, or patches that do not fill the image.
    """

    size: int = 28
    """Rows and columns of pixels."""
    patch_size: int = 4
    """Rows and columns of pixels in one patch."""
    num_channels: int = 3
    """Of a pixel; 3 is what the pipelines of transformers hand in."""
    class_token: bool = False
    """A learned token behind the patches, from which a class is read; else the mean of all tokens."""
    scan: Scan = "raster"
    """In which order whatever looks at other tokens (mixers, token shifts) reads the patches. raster: row by row;
    alternate: row by row in the layers 0, 2, …, column by column in the others; cross: both ways, and the mean."""

    def __post_init__(self) -> None:
        for name in ("size", "patch_size", "num_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"model: image: {name} is {getattr(self, name)}; at least 1 is needed")
        if self.size % self.patch_size:
            raise ValueError(f"model: image: patch_size is {self.patch_size}; a divisor of size {self.size} is needed")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (self.size // self.patch_size,) * 2

    @property
    def num_tokens(self) -> int:
        """Tokens of one image, the class token included."""
        return self.grid[0] * self.grid[1] + self.class_token

    @property
    def patch_values(self) -> int:
        """Numbers in one patch."""
        return self.patch_size**2 * self.num_channels


class PatchEmbedding(nn.Module):
    """W · patch + b for each patch (Dosovitskiy et al. 2020, arXiv:2010.11929, equation 1)."""

    def __init__(self, config: ImageConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Linear(config.patch_values, width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, channels, size, size] -> [B, T, D].

        Raises:
            ValueError: images of another shape.
        """
        expected = (self.config.num_channels, self.config.size, self.config.size)
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"pixel_values has shape {list(pixel_values.shape)}; [B, {', '.join(map(str, expected))}] is needed"
            )
        x: Tensor = self.projection(to_patches(pixel_values, self.config.patch_size).to(self.projection.weight.dtype))
        return x


class ClassToken(nn.Module):
    """One learned vector, put behind the patches of every image.

    Differs: ViT puts it first; behind them, patch t stays token t, and a mixer with one direction can fill it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T + 1, D]."""
        return torch.cat([x, self.vector.to(x.dtype).expand(len(x), 1, -1)], 1)

    def reset_parameters(self) -> None:
        """Normal, std 0.02."""
        nn.init.normal_(self.vector, std=0.02)


def to_patches(images: Tensor, patch_size: int) -> Tensor:
    """[B, channels, R·p, C·p] -> [B, R·C, channels·p·p], in raster order."""
    rows = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)  # B c R C p p
    return rows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def from_patches(patches: Tensor, config: ImageConfig) -> Tensor:
    """[B, R·C, channels·p·p] -> [B, channels, R·p, C·p]: the inverse of `to_patches`."""
    p = config.patch_size
    grid = patches.unflatten(1, config.grid).unflatten(-1, (config.num_channels, p, p))  # B R C c p p
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
