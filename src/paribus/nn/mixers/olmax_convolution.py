"""Olmax's convolutions: full ones, every channel from every channel over a few tokens, around a norm and leaky ReLU.

    y = C_2 a(C_1 x)        bottleneck: y = C_3 a(C_2 a(C_1 x))        a(h) = lrelu(g ⊙ h / ‖h‖)
    (C h)[t] = Σ_j W[j] h[t − j], j < taps

Paper:    none; HomebrewNLP's Olmax, its dense block, and as "bottleneck" its dense mixture of experts on one device
Differs:  the norms before the first and after the last convolution, and the reversible residual, are the block's;
          the middle convolution is not tied over depth; norm "rms_norm" makes vectors √E times as long. Olmax's own
          initial values are normal too, with standard deviations of its own. causal=False centres the taps
Shapes:   W [E, taps, D] from D = width to E = expansion · D, back, and with middle_taps from E to E between them;
          lrelu has slope 0.01; state: the last taps − 1 inputs of each convolution
Cost:     4 taps D E + 2 middle_taps E² FLOPs a token; state (taps − 1) (D + E) + (middle_taps − 1) E numbers,
          whatever the length
Raises:   ValueError if taps is less than 1, middle_taps negative, or expansion not positive
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.convolution import dense_convolution
from ..mixer import Context, Mixer, Placement
from ..norm import RMSNorm
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "bottleneck": {"taps": 25, "middle_taps": 49, "expansion": 0.5},
    "rms_norm": {"norm": "rms_norm"},
}

States = tuple[Tensor | None, ...]


class OlmaxConvolution(Mixer):
    """Two or three full convolutions."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the convolutions."""

        taps: int = 5
        """Tokens that the outer convolutions see, the present one included."""
        expansion: float = 2.0
        """E / D."""
        middle_taps: int = 0
        """The same for a convolution between them; 0 is none."""
        norm: Literal["l2", "rms_norm"] = "l2"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        if config.taps < 1:
            raise ValueError(f"olmax_convolution: taps is {config.taps}; at least 1 is needed")
        if config.middle_taps < 0:
            raise ValueError(f"olmax_convolution: middle_taps is {config.middle_taps}; 0 (none) or more is needed")
        if config.expansion <= 0:
            raise ValueError(f"olmax_convolution: expansion is {config.expansion}; a positive number is needed")
        width = placement.width
        inner = max(1, round(config.expansion * width))
        shapes = [(inner, config.taps, width), (width, config.taps, inner)]
        if config.middle_taps:
            shapes.insert(1, (inner, config.middle_taps, inner))
        self.convolutions = nn.ModuleList(_Convolution(*shape, placement.causal) for shape in shapes)
        make = RMSNorm if config.norm == "rms_norm" else _UnitLength
        self.norms = nn.ModuleList(make(inner) for _ in shapes[1:])

    def mix(self, x: Tensor, rows: Rows, state: States | None, context: Context | None) -> tuple[Tensor, States]:
        """One convolution after another."""
        kept = []
        for number, convolve in enumerate(self.convolutions):
            if number:
                x = functional.leaky_relu(self.norms[number - 1](x), 0.01)
            x, inputs = convolve(x, rows, None if state is None else state[number])
            kept.append(inputs)
        return x, tuple(kept)


class _Convolution(nn.Module):
    """A full convolution."""

    def __init__(self, outputs: int, taps: int, inputs: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.weight = nn.Parameter(torch.empty(outputs, taps, inputs))

    def forward(self, x: Tensor, rows: Rows, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, T, inputs] -> [B, T, outputs], and the last taps - 1 inputs."""
        return dense_convolution(x, self.weight, rows=rows, state=state, causal=self.causal)

    def reset_parameters(self) -> None:
        """Normal, by the number of inputs that an output sees."""
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)


class _UnitLength(nn.Module):
    """g ⊙ h / ‖h‖, which RMSNorm makes √E times as long."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, h: Tensor) -> Tensor:
        """[..., E] -> [..., E]."""
        wide = h.to(torch.promote_types(h.dtype, torch.float32))
        return (functional.normalize(wide, dim=-1, eps=1e-16) * self.weight.to(wide.dtype)).to(h.dtype)

    def reset_parameters(self) -> None:
        """Weight one."""
        nn.init.ones_(self.weight)
