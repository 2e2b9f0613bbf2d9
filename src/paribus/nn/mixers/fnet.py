"""FNet: the real part of the Fourier transform over tokens and channels; no parameters.

    y = Re(F_n x F_D) / √(n D)          with F_n[i, j] = exp(−2π ι i j / n)

Paper:    Lee-Thorp et al. 2021, arXiv:2105.03824
Differs:  divided by √(n D), so that the transform is unitary; n is the length of the segment, padding not counted. The
          paper has no causal form; with causal=True the token matrix is masked, and has M = max_length in place of n,
          since no token may know how many follow: y[i] = Re(Σ_{j ≤ i} F_M[i, j] (x F_D)[j]) / √((i + 1) D)
Shapes:   x [B, T, D]; i and j are true positions in the segment; state: all past x F_D, of which half are needed
Cost:     2.5 D log2(D) FLOPs a token, and T D if causal, else 2.5 D log2(n); no parameters; state D + 2 numbers for
          each past token
Raises:   ValueError if causal and a segment is longer than max_length
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.alignment import align
from ..kernels.chunks import full_precision
from ..kernels.tokens import mix_tokens
from ..mixer import Context, Mixer
from ..segments import Rows


class FNet(Mixer):
    """Fourier transform in place of learned mixing; its causal form has a bound on the length."""

    @dataclass(frozen=True)
    class Config:
        """There is nothing to set."""

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """Over channels, then over tokens."""
        with full_precision(x):
            spectrum = torch.fft.rfft(x.to(torch.promote_types(x.dtype, torch.float32)))  # B T D/2+1
            if self.placement.causal:
                y, state = self._masked(spectrum, rows, state, context)
            else:
                y = _transform(spectrum, rows, x.shape[2])
        return y.to(x.dtype), state

    def _masked(
        self, spectrum: Tensor, rows: Rows, state: Tensor | None, context: Context | None
    ) -> tuple[Tensor, Tensor | None]:
        """What is behind D / 2 in the spectrum of real numbers is the conjugate of what is before."""
        D, parts = self.placement.width, torch.view_as_real(spectrum).movedim(-1, 2)  # B T 2 D/2+1
        waves = self._waves(rows, 0 if state is None else state.shape[1], parts.dtype, context)
        mixed, state = mix_tokens(parts, waves, rows=rows, state=state, causal=True)
        cosines, sines = mixed.unbind(2)
        y = torch.cat([cosines + sines, (cosines - sines)[..., 1 : (D + 1) // 2].flip(-1)], -1)
        read = (rows.positions.clamp(min=0) + 1).to(y.dtype)
        return y * (D * read).rsqrt()[..., None], state

    def _waves(self, rows: Rows, seen: int, dtype: torch.dtype, context: Context | None) -> Tensor:
        """cos and sin of 2π i j / M, [2, n, n]; for tokens after a past their own rows, [B, T, 2, n]."""
        M, T = self.placement.max_length, rows.ids.shape[1]
        places = torch.arange(min(M, seen + T), device=rows.ids.device)
        if rows.past is not None:
            return torch.stack(_circle(rows.positions[..., None] * places, M, dtype), 2)
        key, tables = ("fnet", M, T, str(dtype)), {} if context is None else context.tables
        if key not in tables:
            tables[key] = (torch.stack(_circle(places[:, None] * places, M, dtype)),)
        return tables[key][0]


def _circle(steps: Tensor, period: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of `steps` turns of 2π / period, as exact far out as at the beginning."""
    angles = (steps % period).to(dtype) * (2 * math.pi / period)
    return angles.cos(), angles.sin()


def _transform(spectrum: Tensor, rows: Rows, width: int) -> Tensor:
    """Over the tokens of each segment, by its own length: spectra [B, T, D/2+1] of the channels -> [B, T, D]."""
    aligned = align(spectrum, rows, None)
    lengths = aligned.lengths()
    if lengths is None:
        return aligned.pack(_real_part(aligned.tokens, width))
    y = aligned.tokens.real.new_zeros(*aligned.tokens.shape[:2], width)
    for length in lengths.unique().tolist():
        alike = lengths == length
        y[alike, :length] = _real_part(aligned.tokens[alike, :length], width)
    return aligned.pack(y)


def _real_part(spectrum: Tensor, width: int) -> Tensor:
    """Of the transform over tokens, [R, n, D/2+1] -> [R, n, D]; what is missing of it lies at −i and D − d."""
    waves = torch.fft.fft(spectrum, dim=1).real
    mirrored = waves[..., 1 : (width + 1) // 2].flip(1, 2).roll(1, 1)
    return torch.cat([waves, mirrored], -1) * (spectrum.shape[1] * width) ** -0.5
