"""Positions inside attention: queries and keys turned by them, and ALiBi's slopes. Learned biases: `position_bias`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .mixer import Context, Placement
from .segments import Rows

Tables = tuple[Tensor, ...]


def angles_of(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> Tensor:
    """position · base^(-2i/width) for i < width/2, [..., width/2], in float32 or wider."""
    wide = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=wide) / width
    return positions[..., None].to(wide) * base**-exponents


def once(positions: Tensor) -> Tensor:
    """[B, T], or [1, T] where every row stands at the same positions."""
    return positions[:1] if positions.stride(0) == 0 else positions


def image_grid(placement: Placement, position: str) -> tuple[int, int]:
    """Patch rows and columns of the images that a module at `placement` sees.

    Raises:
        ValueError: it sees text.
    """
    if placement.grid is None:
        raise ValueError(f"position '{position}' needs the rows and columns of an image's patches; text has none")
    return placement.grid


def rotary_tables(
    positions: Tensor, width: int, base: float, dtype: torch.dtype, context: Context | None
) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine [B or 1, T, 1, width] of the angles position · base^(-2i/width), for `rotate`.

    All layers of one forward see the same positions, so the tables are made once and kept in its `context`.
    """
    cosine, sine = _kept(
        context,
        ("rotary", width, base, str(dtype)),
        lambda: _tables(angles_of(once(positions), width, base, dtype), dtype),
    )
    return cosine, sine


def _kept(context: Context | None, key: tuple[float | int | str, ...], make: Callable[[], Tables]) -> Tables:
    if context is None:
        return make()
    if key not in context.tables:
        context.tables[key] = make()
    return context.tables[key]


def _tables(angles: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> Tables:
    """Cosine and signed sine, times `scale`, for the first and for the second channels of all pairs."""
    cosine, sine = angles.cos(), angles.sin()
    if scale is not None:
        cosine, sine = cosine * scale, sine * scale
    return tuple(torch.cat(pair, -1)[..., None, :].to(dtype) for pair in ((cosine, cosine), (-sine, sine)))


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the opposite rotation; that of a scaled one is scaled alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        # Not in place at the end: the compiler of torch 2.11 then loses the gradient.
        return torch.addcmul(_swap_halves(x).mul_(sine), x, cosine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = outputs
        cosine, sine = ctx.saved_tensors
        return _swap_halves(grad).mul_(-sine).addcmul_(grad, cosine), None, None


def _swap_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([second, first], -1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary encoding of x [B, T, H, K] (Su et al. 2021, arXiv:2104.09864), channel i paired with i + K/2."""
    y: Tensor = _Rotate.apply(x, cosine, sine)
    return y


class Rotary:
    """q[t]·R(t − s)k[s]: pairs of channels turned by t θ_i, θ_i = base^(-2i/K) (Su et al. 2021, arXiv:2104.09864).

    Only the first `width` channels of a head are turned, as in GPT-NeoX (Black et al. 2022, arXiv:2204.06745).

    Raises:
        ValueError: that are not pairs, or for two axes not pairs of pairs.
    """

    name = "rotary"
    channels = 2
    """Whose multiple `width` has to be."""

    def __init__(self, width: int, base: float, placement: Placement) -> None:
        if width < 1 or width % self.channels:
            raise ValueError(
                f"position '{self.name}' rotates a multiple of {self.channels} channels of a head; here it is {width}"
            )
        self.width = width
        self.base = base
        self.placement = placement

    def __call__(self, q: Tensor, k: Tensor, rows: Rows, context: Context | None) -> tuple[Tensor, Tensor]:
        """q [B, T, H, K] and k [B, T, G, K], turned by the true positions of `rows`."""
        tables = self.tables(rows.positions, q.dtype, context)
        return self._turn(q, *tables[:2]), self._turn(k, *tables[-2:])

    def tables(self, positions: Tensor, dtype: torch.dtype, context: Context | None) -> Tables:
        """Cosine and signed sine for both, or those of queries and then those of keys."""
        return rotary_tables(positions, self.width, self.base, dtype, context)

    def _turn(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        if self.width == x.shape[-1]:
            return rotate(x, cosine, sine)
        return torch.cat([rotate(x[..., : self.width], cosine, sine), x[..., self.width :]], -1)


class XPos(Rotary):
    """Rotary with its pairs' products × ζ_i^((t − s)/512), ζ_i = (2i/K + 0.4)/1.4 (Sun et al. 2022, arXiv:2212.10554).

    Queries are scaled by ζ^(p/512) and keys by ζ^(-p/512) with p = t − max_length/2, which is exact, and halves the
    exponents. Towards a later token the factor would grow, so that with two directions there is none.
    """

    name = "xpos"
    smoothing = 0.4
    scale_base = 512

    def tables(self, positions: Tensor, dtype: torch.dtype, context: Context | None) -> Tables:
        """Those of queries and then those of keys."""
        if not self.placement.causal:
            return super().tables(positions, dtype, context)
        middle = self.placement.max_length / 2

        def make() -> Tables:
            angles = angles_of(once(positions), self.width, self.base, dtype)
            share = torch.arange(0, self.width, 2, device=angles.device, dtype=angles.dtype) / self.width
            power = (once(positions)[..., None].to(angles.dtype) - middle) / self.scale_base
            scale = ((share + self.smoothing) / (1 + self.smoothing)) ** power
            return (*_tables(angles, dtype, scale), *_tables(angles, dtype, 1 / scale))

        return _kept(context, (self.name, self.width, self.base, middle, str(dtype)), make)


class Rotary2D(Rotary):
    """Rotary by rows in the first half of the pairs, by columns in the second (Heo et al. 2024, arXiv:2403.13298).

    Token t of an image is the patch in row ⌊t / columns⌋ and column t mod columns; angles in each half are those of
    rotary with half the channels.
    """

    name = "rotary_2d"
    channels = 4

    def __init__(self, width: int, base: float, placement: Placement) -> None:
        super().__init__(width, base, placement)
        self.num_columns = image_grid(placement, self.name)[1]

    def tables(self, positions: Tensor, dtype: torch.dtype, context: Context | None) -> Tables:
        """Cosine and signed sine for both."""

        def make() -> Tables:
            axes = (once(positions) // self.num_columns, once(positions) % self.num_columns)
            angles = torch.cat([angles_of(axis, self.width // 2, self.base, dtype) for axis in axes], -1)
            return _tables(angles, dtype)

        return _kept(context, (self.name, self.num_columns, self.width, self.base, str(dtype)), make)


ROTATIONS: dict[str, type[Rotary]] = {kind.name: kind for kind in (Rotary, XPos, Rotary2D)}


def alibi_slopes(num_heads: int, like: Tensor) -> Tensor:
    """Scores less 2^(-8h/H) · |t − s| in head h = 1, …, H (ALiBi; Press et al. 2021, arXiv:2108.12409).

    Args:
        like: gives the device, and the dtype where it is wider than float32.

    Returns:
        The slopes [H].
    """
    heads = torch.arange(1, num_heads + 1, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    return torch.exp2(-8 * heads / num_heads)
