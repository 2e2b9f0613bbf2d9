"""TransNormerLLM's linear attention (TNL, lightning attention): one fixed decay a head, a norm and a gate.

    S[t] = a S[t-1] + P_t φ(k[t]) v[t]ᵀ        o[t] = S[t]ᵀ P_t φ(q[t]) / √F        y = W_o (W_u x ⊙ norm(o))
    φ = silu        a = exp(-8 h / H (1 - layer / layers)), h = 1 … H        P: [x cos(t θ), x sin(t θ)], layer 0 only

Paper:    Qin et al. 2023, arXiv:2307.14995; Qin et al. 2024, arXiv:2405.17381; preset "minimax": MiniMax-01, 2025,
          arXiv:2501.08313; the published code of both was read, nothing of it copied
Differs:  what is learned of angles is added to where they begin; 1 / √F, which the norm undoes; in the preset "minimax"
          decays do not depend on the layer; causal=False adds the same recurrence from the end, without counting the
          token itself twice; initialization "paper" is the published code's: everything normal with std 0.02
Shapes:   q, k [B, T, H, K], K = D / H; P φ [B, T, H, F], F = 2 K where there are positions, else K; v [B, T, H, K];
          norm over all D channels; state S [B, H, F, K] in float32; t is the true position in the segment
Cost:     10 D² + 4 D (F + C) FLOPs a token in chunks of C tokens; state D F numbers, whatever the length
Raises:   ValueError if num_heads does not divide the width, for an unknown feature, an unknown decay or one that is not
          scalar
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from ..decay import make_decay
from ..features import make_feature
from ..kernels.recurrence import recurrence
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import make_norm
from ..relative_positions import RelativePositions
from ..segments import Rows
from ..state import State

PRESETS: dict[str, dict[str, Any]] = {
    "no_position": {"position": "none"},
    "minimax": {
        "position": "none",
        "decay": "constant_alibi",
        "activate_values": True,
        "gate": "sigmoid",
        "norm": "rms_norm",
    },
}


class TNLState(NamedTuple):
    """What the mixer carries from token to token."""

    memory: Tensor | None
    """[B, H, F, K]: S."""
    decay: State
    """The decay's own, None for most."""


class TNL(Mixer):
    """Linear attention with fixed decays, as in TransNormerLLM."""

    @dataclass(frozen=True)
    class Config:
        """Settings of TransNormerLLM's linear attention."""

        num_heads: int = 4
        feature: str = "silu"
        """φ, by its name among the features."""
        decay: str = "constant_tnl"
        """By its name among the decays; scalar ones only."""
        position: Literal["first_layer", "every_layer", "none"] = "first_layer"
        """Where P is; elsewhere there is nothing in its place."""
        activate_values: bool = False
        """silu of the values."""
        gate: Literal["linear", "sigmoid"] = "linear"
        norm: Literal["simple_rms_norm", "rms_norm", "layer_norm"] = "simple_rms_norm"
        initialization: Literal["house", "paper"] = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        head_width = check_divisible(width, heads, "tnl")
        self.query_feature = make_feature(config.feature, heads, head_width)
        self.key_feature = make_feature(config.feature, heads, head_width)
        placed = config.position == "every_layer" or (config.position == "first_layer" and placement.layer == 0)
        self.position = RelativePositions("cosine", heads, self.query_feature.width, True) if placed else None
        self.decay = make_decay(config.decay, placement, heads, head_width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.norm = make_norm(config.norm, width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: TNLState | None, context: Context | None) -> tuple[Tensor, TNLState]:
        """The recurrence, normalised over all heads together and gated."""
        memory, decay = state or (None, None)
        heads = self.config.num_heads
        q = self.query_feature(split_heads(self.query(x), heads))  # B T H F
        k = self.key_feature(split_heads(self.key(x), heads))
        v = self.value(x)
        v = split_heads(functional.silu(v) if self.config.activate_values else v, heads)
        if self.position is not None:
            q, k = self.position(q, k, rows=rows)
        forget = self.decay(x, rows, decay, context)
        q = q * q.shape[-1] ** -0.5
        o, memory = recurrence(q, k, v, forget.log_decay, rows=rows, state=memory, causal=self.placement.causal)
        gate = self.gate(x)
        gate = gate.sigmoid() if self.config.gate == "sigmoid" else gate
        return self.output(gate * self.norm(o.flatten(2)).to(v.dtype)), TNLState(memory, forget.state)

    def reset_parameters(self) -> None:
        """The paper's values, if they are asked for."""
        if self.config.initialization == "paper":
            for layer in (self.query, self.key, self.value, self.gate, self.output):
                nn.init.normal_(layer.weight, std=0.02)
