"""MesaNet: each token reads out the linear map that best fits values to keys so far, solved for anew.

    q, k = silu(conv(W x)) / ‖·‖        v = W_v x        β = sigmoid(w x + b)        λ = softplus(l) + 1/4
    A[t] = a[t] A[t-1] + β[t] k[t] k[t]ᵀ        S[t] = a[t] S[t-1] + β[t] k[t] v[t]ᵀ
    o[t] = S[t]ᵀ (A[t] + Diag(λ))⁻¹ q[t]        y = W_o norm(o)

Paper:    von Oswald et al. 2025, arXiv:2506.05233; the layer in flash-linear-attention was read, nothing copied
Differs:  the decay is any of the registry's of one number a head; "sigmoid_offset" is the paper's, starting at 0.99;
          the gradient is that of the solution, not of the iterations; causal=False sums both states over all tokens,
          decayed by distance, behind a centred convolution
Shapes:   q, k, v [B, T, H, K], K = D / H; state: the convolutions' last taps - 1 inputs, A and S [B, H, K, K] in
          float32
Cost:     8 D² + (I + 6) 2 D K + (I + 4) 2 D C FLOPs a token in chunks of C tokens for I iterations, forward; state
          2 D (K + taps - 1) numbers
Raises:   ValueError if num_heads does not divide the width, taps or iterations is less than one, or for an unknown
          decay
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..decay import make_decay, widened
from ..delta_parts import ShortConvolution, check_taps, with_length
from ..kernels.recurrence import recurrence
from ..kernels.solve import Solver, solve
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..segments import Rows
from ..state import State

PRESETS: dict[str, dict[str, Any]] = {"exact": {"num_heads": 16, "solver": "exact"}, "gated": {"gated": True}}


class MesaState(NamedTuple):
    """What the mixer carries from token to token."""

    inputs: tuple[Tensor | None, ...]
    """[B, taps - 1, D] each: the short convolutions' of queries and keys."""
    keys: Tensor | None
    """[B, H, K, K]: A."""
    memory: Tensor | None
    """[B, H, K, K]: S."""
    decay: State
    """The decay's own, None for most."""


class MesaNet(Mixer):
    """Least squares over the past, for each token."""

    @dataclass(frozen=True)
    class Config:
        """Settings of MesaNet."""

        num_heads: int = 4
        taps: int = 4
        """Tokens that the short convolutions see, the present one included."""
        decay: str = "sigmoid_offset"
        gated: bool = False
        """Multiply the output by swish(W_g x)."""
        solver: Solver = "conjugate_gradient"
        """Or "exact", which forms a K x K matrix for every token: for narrow heads."""
        iterations: int = 30
        """Of conjugate gradients, at most."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        head_width = check_divisible(width, heads, "mesa_net")
        check_taps(config.taps, "mesa_net")
        if config.iterations < 1:
            raise ValueError(f"mesa_net: iterations is {config.iterations}; at least 1 is needed")
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.convolutions = nn.ModuleList(ShortConvolution(width, config.taps, placement.causal) for _ in range(2))
        self.strength = nn.Linear(width, heads)
        self.decay = make_decay(config.decay, placement, heads, head_width)
        self.ridge = nn.Parameter(torch.empty(heads, head_width))  # l
        self.gate = nn.Linear(width, width, bias=False) if config.gated else None
        self.norm = RMSNorm(head_width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: MesaState | None, context: Context | None) -> tuple[Tensor, MesaState]:
        """Solve with the keys' state, then read the values'."""
        inputs, keys, memory, decay = state or ((None, None), None, None, None)
        heads, causal = self.config.num_heads, self.placement.causal
        parts = zip(self.convolutions, (self.query, self.key), inputs, strict=True)
        convolved, inputs = zip(*(mix(project(x), rows, past) for mix, project, past in parts), strict=True)
        q, k = (with_length(split_heads(widened(part), heads)) for part in convolved)
        strength = widened(self.strength(x)).sigmoid()
        gate = self.decay(x, rows, decay, context)
        ridge = functional.softplus(widened(self.ridge)) + 0.25
        how: dict[str, Any] = {"solver": self.config.solver, "iterations": self.config.iterations}
        q, keys = solve(q, k, strength, ridge, gate.log_decay, rows=rows, state=keys, causal=causal, **how)
        write, v = k * strength[..., None], split_heads(self.value(x), heads)
        o, memory = recurrence(q, write, v, gate.log_decay, rows=rows, state=memory, causal=causal)
        o = self.norm(o).flatten(2).to(x.dtype)
        y = self.output(o if self.gate is None else functional.silu(self.gate(x)) * o)
        return y, MesaState(inputs, keys, memory, gate.state)

    def reset_parameters(self) -> None:
        """λ = 1."""
        nn.init.constant_(self.ridge, math.log(math.expm1(0.75)))
