"""Gated DeltaNet: a decaying state that is corrected where it is written, so that a key holds one value.

    q, k = silu(conv(W x)) / ‖·‖        v = silu(conv(W_v x))        β = sigmoid(W_β x)
    S[t] = (I - β[t] k[t] k[t]ᵀ) a[t] S[t-1] + β[t] k[t] v[t]ᵀ        o[t] = S[t]ᵀ q[t] / √K
    y = W_o (swish(W_g x) ⊙ norm(o))

Paper:    Yang et al. 2024, arXiv:2412.06464; without decay and gate, DeltaNet: Yang et al. 2024, arXiv:2406.06484; β up
          to 2: Grazzi et al. 2024. Qwen3-Next's code in transformers was read, not copied, and serves as a test
Differs:  the decay is any of the registry's, in the paper "mamba" and scalar, whose rates start uniform there and
          log-uniform here; keys and values are by default as wide as the model, in the paper 3/4 and 3/2 of it;
          causal=False adds the same recurrence from the end, without counting the token itself twice, behind a centred
          convolution; initialization "paper" takes the published code's maps and taps
Shapes:   q, k [B, T, H, K], K = key_expansion D / H; v [B, T, H, V], V = value_expansion D / H; state: the
          convolutions' last taps - 1 inputs and S [B, H, K, V] in float32
Cost:     10 D² + 6 D K + 10 D C + H C² FLOPs a token in chunks of C tokens with K = V; state D (K + 3 taps - 3) numbers
Raises:   ValueError if num_heads does not divide the width of keys or values, taps is less than one, or for an unknown
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
    "paper": {"key_expansion": 0.75, "value_expansion": 1.5, "initialization": "paper"},
    "delta_net": {"decay": "none", "gated": False},
    "channel": {"granularity": "channel"},
    "negative_eigenvalues": {"negative_eigenvalues": True},
}


class GatedDeltaState(NamedTuple):
    """What the mixer carries from token to token."""

    inputs: tuple[Tensor | None, ...]
    """[B, taps - 1, E] each: the short convolutions' of queries, keys and values."""
    memory: Tensor | None
    """[B, H, K, V]: S."""
    decay: State
    """The decay's own, None for most."""


class GatedDeltaNet(Mixer):
    """The gated delta rule behind short convolutions."""

    @dataclass(frozen=True)
    class Config:
        """Settings of Gated DeltaNet."""

        num_heads: int = 4
        key_expansion: float = 1.0
        """Width of all keys together, relative to the model's width."""
        value_expansion: float = 1.0
        """Width of all values together, relative to the model's width."""
        taps: int = 4
        """Tokens that the short convolutions see, the present one included."""
        decay: str = "mamba"
        granularity: Literal["scalar", "channel"] = "scalar"
        negative_eigenvalues: bool = False
        """β = 2 sigmoid(W_β x): beyond 1 the state is reflected along the key, which lets it count and alternate."""
        gated: bool = True
        """Multiply the output by swish(W_g x)."""
        initialization: Initialization = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads, taps, causal = placement.width, config.num_heads, config.taps, placement.causal
        keys, values = int(config.key_expansion * width), int(config.value_expansion * width)
        self.key_width = check_divisible(keys, heads, "gated_delta_net: key_expansion")
        value_width = check_divisible(values, heads, "gated_delta_net: value_expansion")
        if not keys or not values:
            raise ValueError("gated_delta_net: key_expansion and value_expansion must leave a channel for each head")
        check_taps(taps, "gated_delta_net")
        self.query = nn.Linear(width, keys, bias=False)
        self.key = nn.Linear(width, keys, bias=False)
        self.value = nn.Linear(width, values, bias=False)
        self.convolutions = nn.ModuleList(ShortConvolution(size, taps, causal) for size in (keys, keys, values))
        self.strength = nn.Linear(width, heads, bias=False)
        self.gate = nn.Linear(width, values, bias=False) if config.gated else None
        self.decay = make_decay(config.decay, placement, heads, self.key_width, config.granularity)
        self.norm = RMSNorm(value_width)
        self.output = nn.Linear(values, width, bias=False)

    def mix(
        self, x: Tensor, rows: Rows, state: GatedDeltaState | None, context: Context | None
    ) -> tuple[Tensor, GatedDeltaState]:
        """The delta rule, normalised in each head and gated."""
        inputs, memory, decay = state or ((None, None, None), None, None)
        parts = zip(self.convolutions, (self.query, self.key, self.value), inputs, strict=True)
        convolved, inputs = zip(*(mix(project(x), rows, past) for mix, project, past in parts), strict=True)
        q, k, v = (split_heads(part, self.config.num_heads) for part in convolved)
        q, k = with_length(q, self.key_width**-0.5), with_length(k)
        strength = self.strength(x).sigmoid() * (2 if self.config.negative_eigenvalues else 1)
        gate = self.decay(x, rows, decay, context)
        o, memory = delta(q, k, v, strength, gate.log_decay, rows=rows, state=memory, causal=self.placement.causal)
        o = self.norm(o).flatten(2)
        y = self.output(o if self.gate is None else functional.silu(self.gate(x)) * o)
        return y, GatedDeltaState(inputs, memory, gate.state)

    def reset_parameters(self) -> None:
        """Nothing more for "house"; with "paper" the published code's."""
        if self.config.initialization == "paper":
            initialize_as_published(self)
