"""Two streams that are coupled in turn, so that training computes activations again instead of keeping them.

    (x0, x1) ← (x1, x0 + mixer(norm(x1)))        (x0, x1) ← (x1, x0 + channel(norm(x1)))
    (e, e) before the first block                x0 + x1 after the last

Paper:    Gomez et al. 2017, arXiv:1707.04585, section 3; for transformers Kitaev et al. 2020, arXiv:2001.04451;
          the swap of roles and both ends as in Olmax (ClashLuke 2022), whose code was read; nothing was copied
Differs:  a norm before each branch, as in pre-norm; the streams start equal instead of as halves of the channels, so
          every branch has the model's whole width; they are wider than the model, see `precision`
Shapes:   x0, x1 [B, T, D]; e the embeddings
Cost:     two norms; in training, each branch forward once more; the activations that are kept do not grow with depth
Raises:   ValueError if precision is float64 on a device that lacks it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..mixer import Placement
from ..residual import Branch, Residual
from ..reversible import Pair, Tape, couple, finish


class Reversible(Residual):
    """Additive coupling of two streams.

    It is another function than pre-norm, not a way to compute it. Gradient checkpointing has nothing to do here.
    """

    streams = 2

    @dataclass(frozen=True)
    class Config:
        """Settings of the coupling."""

        precision: Literal["float32", "float64"] = "float64"
        """Of the two streams. Inverted in float64, they give back all digits of float32, and gradients with them."""

    def __init__(self, placement: Placement, config: Config, norm: str, has_channel: bool) -> None:
        super().__init__(placement, config, norm, has_channel)
        self.mixer_norm = self.norm()
        if has_channel:
            self.channel_norm = self.norm()

    def start(self, x: Tensor, recompute: bool) -> Pair:
        """[B, T, D] -> the same in both streams.

        Raises:
            ValueError: streams in float64 on a device that has none.
        """
        if x.device.type == "mps" and self.config.precision == "float64":
            raise ValueError("reversible: precision is 'float64', which device 'mps' lacks; 'float32' is needed there")
        wide = x.to(torch.promote_types(x.dtype, getattr(torch, self.config.precision)))
        return Pair(wide, wide, x.dtype, Tape() if recompute else None)

    def forward(self, x: Pair, mix: Branch, channel: Branch | None) -> Pair:
        """One coupling for each branch."""
        x = couple(x, self.mixer_norm, mix)
        return x if channel is None else couple(x, self.channel_norm, channel)

    def end(self, x: Pair) -> Tensor:
        """The sum of both."""
        return finish(x)
