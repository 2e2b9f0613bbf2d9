"""DeltaProduct: several steps of the delta rule for each token, whose product turns the state further than one can.

    k[t, j] = silu(conv(W_j x)) / ‖·‖        v[t, j] = silu(conv(W'_j x))        β[t, j] = 2 sigmoid(w_j x)
    S[t, 0] = a[t] S[t-1, n]        S[t, j] = (I - β[t, j] k[t, j] k[t, j]ᵀ) S[t, j-1] + β[t, j] k[t, j] v[t, j]ᵀ
    o[t] = S[t, n]ᵀ q[t] / √K        y = W_o (swish(W_g x) ⊙ norm(o))

Paper:    Siems et al. 2025, arXiv:2502.10297; the layer in flash-linear-attention was read, nothing copied
Differs:  the decay is any of the registry's, in the paper "mamba" and scalar; keys and values are as wide as the model;
          causal=False adds the same steps from the end, last step first, read before the token's own, behind a centred
          convolution; initialization "paper" takes the published code's maps and taps
Shapes:   q [B, T, H, K], k, v [B, T n, H, K], K = D / H; state: the convolutions' last taps - 1 inputs and S
          [B, H, K, K] in float32
Cost:     (6 + 4 n) D² + n (6 D K + 10 D C + H C²) FLOPs a token in chunks of C steps; state
          D (K + (2 n + 1) (taps - 1)) numbers
Raises:   ValueError if num_heads does not divide the width, num_householder or taps is less than one, or for an unknown
          decay or one without that granularity
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from ..decay import make_decay
from ..delta_parts import Initialization, ShortConvolution, check_taps, initialize_as_published, with_length
from ..kernels.delta import delta
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..segments import Rows
from ..state import State

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"initialization": "paper"},
    "ungated": {"decay": "none"},
    "three": {"num_householder": 3},
}


class DeltaProductState(NamedTuple):
    """What the mixer carries from token to token."""

    inputs: tuple[Tensor | None, ...]
    """[B, taps - 1, D or n D] each: the short convolutions' of queries, keys and values."""
    memory: Tensor | None
    """[B, H, K, K]: S after a token's last step."""
    decay: State
    """The decay's own, None for most."""


class DeltaProduct(Mixer):
    """The delta rule, several steps a token."""

    @dataclass(frozen=True)
    class Config:
        """Settings of DeltaProduct."""

        num_heads: int = 4
        num_householder: int = 2
        """n, steps of the delta rule for each token."""
        taps: int = 4
        """Tokens that the short convolutions see, the present one included."""
        decay: str = "mamba"
        granularity: Literal["scalar", "channel"] = "scalar"
        negative_eigenvalues: bool = True
        """β up to 2; without, β = sigmoid."""
        initialization: Initialization = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads, n = placement.width, config.num_heads, config.num_householder
        self.head_width = check_divisible(width, heads, "delta_product")
        if n < 1:
            raise ValueError(f"delta_product: num_householder is {n}; at least 1 is needed")
        check_taps(config.taps, "delta_product")
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, n * width, bias=False)
        self.value = nn.Linear(width, n * width, bias=False)
        self.convolutions = nn.ModuleList(
            ShortConvolution(size, config.taps, placement.causal) for size in (width, n * width, n * width)
        )
        self.strength = nn.Linear(width, n * heads, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.decay = make_decay(config.decay, placement, heads, self.head_width, config.granularity)
        self.norm = RMSNorm(self.head_width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: DeltaProductState | None, context: Context | None
    ) -> tuple[Tensor, DeltaProductState]:
        """The steps of all tokens in one row: the first of a token decays, the last one reads."""
        inputs, memory, decay = state or ((None, None, None), None, None)
        n, heads, causal = self.config.num_householder, self.config.num_heads, self.placement.causal
        parts = zip(self.convolutions, (self.query, self.key, self.value), inputs, strict=True)
        convolved, inputs = zip(*(mix(project(x), rows, past) for mix, project, past in parts), strict=True)
        q, k, v = (split_heads(part.unflatten(-1, (-1, self.placement.width)), heads) for part in convolved)
        q, k = with_length(q, self.head_width**-0.5), with_length(k)  # B T 1 H K, B T n H K
        strength = self.strength(x).sigmoid() * (2 if self.config.negative_eigenvalues else 1)
        gate = self.decay(x, rows, decay, context)
        o, memory = delta(
            functional.pad(q, (0, 0, 0, 0, n - 1, 0)).flatten(1, 2),
            k.flatten(1, 2),
            v.flatten(1, 2),
            strength.unflatten(-1, (n, heads)).flatten(1, 2),
            None if gate.log_decay is None else _at_first_steps(gate.log_decay, rows, n),
            rows=rows.repeated(n),
            state=memory,
            causal=causal,
        )
        o = self.norm(o[:, n - 1 :: n]).flatten(2)
        return self.output(functional.silu(self.gate(x)) * o), DeltaProductState(inputs, memory, gate.state)

    def reset_parameters(self) -> None:
        """Nothing more for "house"; with "paper" the published code's."""
        if self.config.initialization == "paper":
            initialize_as_published(self)


def _at_first_steps(log_decay: Tensor, rows: Rows, n: int) -> Tensor:
    """[H] or [B, T, H(, K)] of tokens as [B, T n, H(, K)] of steps, zero at all but the first of each token."""
    if log_decay.dim() == 1:
        log_decay = log_decay.expand(*rows.ids.shape, -1)
    return functional.pad(log_decay[:, :, None], (0, 0) * (log_decay.dim() - 2) + (0, n - 1)).flatten(1, 2)
