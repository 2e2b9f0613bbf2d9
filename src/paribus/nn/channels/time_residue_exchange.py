"""Time-residue exchange, Olmax's "dense mixture of experts": a token's position modulo R picks its middle convolution.

    y = C_o a(norm(M_{t mod R}(a(norm(C_i x)))))        (C h)[t] = Σ_j W[j] h[t - j], j < taps
    (M_r h)[t] = Σ_j V_r[j] h[t - R j], j < middle_taps        a = leaky ReLU

Paper:    none; HomebrewNLP's Olmax, whose code was read and not copied
Differs:  there, R devices hold a group of channels each for all tokens; an exchange gives device r all channels of
          the tokens t ≡ r (mod R), device r convolves these with weights of its own, and the exchange is undone. The
          same function is computed here without devices. num_groups = R cuts the outer convolutions as the devices do;
          1, the default, lets them read all channels. t counts from the beginning of the token's own segment. The
          middle weights are not tied over depth; initial values are normal by fan-in; the norms around are the block's.
          The default norm is rms_norm, Olmax's is l2_norm. causal=False centres the taps
Shapes:   x [B, T, D]; inner [B, T, E] with E = num_groups · round(expansion · D / num_groups); C_i [E, taps, D /
          num_groups] and back; V_r [E, middle_taps, E]; state: the last taps - 1 inputs of the outer convolutions, and
          for each residue the middle_taps - 1 last inputs and which segment they are of
Cost:     4 taps D E / num_groups + 2 middle_taps E² FLOPs a token; R middle_taps E² parameters in the middle; state
          (taps - 1) (D + E) + R (middle_taps - 1) E numbers, whatever the length
Raises:   ValueError if taps, middle_taps or residues is less than 1, num_groups does not divide the width, or expansion
          leaves no inner channel, or there is no such norm
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..channel import inner_width
from ..kernels.convolution import dense_convolution
from ..mixer import Context, Mixer, Placement
from ..norm import make_norm
from ..segments import Past, Rows, resolve
from ..stacked import StackedLinear
from ..window_linear import WindowLinear

PRESETS: dict[str, dict[str, Any]] = {
    "olmax": {"taps": 25, "middle_taps": 49, "residues": 8, "num_groups": 8, "norm": "l2_norm"},
}


class Seen(NamedTuple):
    """What the middle convolution has seen of one residue."""

    past: Past
    """Of the tokens of this residue only."""
    inputs: Tensor | None
    """[B, middle_taps - 1, E]."""


class ExchangeState(NamedTuple):
    """What the mixer carries from token to token."""

    first: Tensor | None
    """[B, taps - 1, D]."""
    residues: tuple[Seen, ...]
    last: Tensor | None
    """[B, taps - 1, E]."""


class TimeResidueExchange(Mixer):
    """Three convolutions, the middle one dilated and with weights by position."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the time-residue exchange."""

        expansion: float = 0.5
        taps: int = 5
        """Tokens that the outer convolutions see, the present one included."""
        middle_taps: int = 9
        """Tokens that the middle convolution sees, `residues` apart, the present one included."""
        residues: int = 4
        """R."""
        num_groups: int = 1
        """Groups of channels in the outer convolutions, which see only themselves."""
        norm: str = "rms_norm"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        for name in ("taps", "middle_taps", "residues"):
            if getattr(config, name) < 1:
                raise ValueError(f"time_residue_exchange: {name} is {getattr(config, name)}; at least 1 is needed")
        width, groups, causal = placement.width, config.num_groups, placement.causal
        if groups < 1 or width % groups:
            raise ValueError(f"time_residue_exchange: width {width} is not divisible by num_groups {groups}")
        inner = groups * inner_width(width // groups, config.expansion)
        self.up = WindowLinear(width, inner, config.taps, causal, groups)
        self.norms = nn.ModuleList(make_norm(config.norm, inner) for _ in range(2))
        self.middle = _ByResidue(config.residues, inner, config.middle_taps, causal)
        self.output = WindowLinear(inner, width, config.taps, causal, groups)

    def mix(
        self, x: Tensor, rows: Rows, state: ExchangeState | None, context: Context | None
    ) -> tuple[Tensor, ExchangeState]:
        """One convolution after another."""
        first, residues, last = state or (None, None, None)
        h, first = self.up(x, rows, first)
        h, residues = self.middle(functional.leaky_relu(self.norms[0](h)), rows, residues)
        y, last = self.output(functional.leaky_relu(self.norms[1](h)), rows, last)
        return y, ExchangeState(first, residues, last)


class _ByResidue(StackedLinear):
    """For each residue of the position a full convolution of its own, over the tokens of that residue."""

    def __init__(self, residues: int, width: int, taps: int, causal: bool) -> None:
        super().__init__(residues, taps * width, width)
        self.taps = taps
        self.causal = causal

    def forward(  # type: ignore[override]  # a linear map of windows
        self, x: Tensor, rows: Rows, state: tuple[Seen, ...] | None
    ) -> tuple[Tensor, tuple[Seen, ...]]:
        """[B, T, E] -> [B, T, E], zero at padding, and what has been seen of each residue.

        To a convolution the tokens of the other residues are padding, which it skips.
        """
        residues = rows.positions % self.count
        y, kept = torch.zeros_like(x), []
        for residue, weight in enumerate(self.matrices().unflatten(2, (self.taps, -1)).unbind()):
            ids = rows.ids.where(residues == residue, 0)
            seen = None if state is None else state[residue]
            if seen is not None and not ids.any():
                kept.append(seen)
                continue
            past, inputs = seen or (None, None)
            own = resolve(x, ids, past)
            part, inputs = dense_convolution(x, weight, rows=_simplest(own), state=inputs, causal=self.causal)
            y = y + part
            kept.append(Seen(own.after(), inputs))
        return y, tuple(kept)


def _simplest(rows: Rows) -> Rows:
    """Rows that turn out to be plain, which is what decoding meets, said to be so: that is much faster."""
    assert rows.valid is not None and rows.starts is not None, "they were resolved from segments"
    plain = rows.past is not None and bool(rows.valid.all()) and not bool(rows.starts.any())
    return Rows(rows.ids, rows.positions, None, None, rows.past) if plain else rows
