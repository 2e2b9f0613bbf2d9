"""HGRN, the first: an elementwise recurrence whose forget gates have a lower bound that rises with depth, and phases.

    f = l + (1 − l) sigmoid(W_f x)      h[t] = f[t] exp(iθ) ⊙ h[t−1] + (1 − f[t]) ⊙ c[t]
    c = silu(W_r x) + i silu(W_i x)      y = W_o norm(silu(W_g x) ⊙ [Re h, Im h])

Paper:    Qin et al. 2023, arXiv:2311.04823, section 3, and the authors' hgru-pytorch; nothing copied
Differs:  RMSNorm, no biases; the gate is silu as in the authors' code, the norm behind it as in the paper; causal=False
          sums both directions with the same gates; form "real", which the authors' code has too, sets θ and Im c to 0
Shapes:   f, θ, l [B, T, D]; h, c [B, T, D] complex; state: h, 2 D numbers, of form "real" D
Cost:     14 D² FLOPs a token, of form "real" 8 D²
Raises:   nothing
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..initialization import fill_with
from ..kernels.scan import scan
from ..lower_bound import LowerBound, bounded_log_decay
from ..mixer import Context, Mixer, Placement
from ..norm import RMSNorm
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {"real": {"form": "real"}}


class HGRN1(Mixer):
    """Hierarchically gated recurrent network."""

    @dataclass(frozen=True)
    class Config:
        """Settings of HGRN."""

        form: Literal["complex", "real"] = "complex"
        """The kind of numbers that h is made of."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width = placement.width
        inner = width if config.form == "real" else 2 * width
        self.forget = nn.Linear(width, width, bias=False)
        self.bound = LowerBound(placement, width)
        self.phase = None if config.form == "real" else nn.Parameter(torch.empty(width))  # θ
        self.input = nn.Linear(width, inner, bias=False)
        self.gate = nn.Linear(width, inner, bias=False)
        self.norm = RMSNorm(inner)
        self.output = nn.Linear(inner, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """The recurrence runs in float32 or wider; real and imaginary parts lie side by side."""
        logits = self.forget(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        bound = self.bound(context).to(logits.dtype)
        log_decay, taken = bounded_log_decay(logits, bound), (1 - bound) * torch.sigmoid(-logits)  # f, 1 - f
        inputs = functional.silu(self.input(x)).to(logits.dtype)
        if self.phase is None:
            h, state = scan(taken * inputs, log_decay, rows=rows, state=state, causal=self.placement.causal)
        else:
            log_decay = torch.complex(log_decay, self.phase.to(log_decay.dtype).expand_as(log_decay))
            inputs = taken * torch.view_as_complex(inputs.unflatten(-1, (-1, 2)))
            h, state = scan(inputs, log_decay, rows=rows, state=state, causal=self.placement.causal)
            h = torch.view_as_real(h).flatten(-2)
        return self.output(self.norm(functional.silu(self.gate(x)) * h.to(x.dtype))), state

    def reset_parameters(self) -> None:
        """Phases from 1 to nearly 10,000^-2 a token, falling geometrically over the channels."""
        if self.phase is not None:
            fill_with(self.phase, lambda u: 10_000 ** (-2 * torch.arange(len(u), device=u.device) / len(u)))
