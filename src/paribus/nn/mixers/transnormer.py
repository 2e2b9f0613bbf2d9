"""TransNormer's NormAttention: linear attention with a norm in the denominator's place, and relative positions.

    o[t] = Σ_{s ≤ t} (P_t φ(q[t]) · P_s φ(k[s])) v[s] / √F        y = W_o norm(o)
    gated:  y = W_o (swish(W_u x) ⊙ norm(o))

Paper:    Qin et al. 2022, arXiv:2210.10340; positions P: Qin et al. 2023, arXiv:2307.09270; published code was read,
          nothing of it copied
Differs:  the paper's DiagAttention, blockwise softmax in the first half of its layers, is another mixer (attention with
          a window); no biases; rotations have no reflection before them; what is learned of angles is added to where
          they begin; 1 / √F, which the norm undoes; causal=False drops the condition s ≤ t; initialization "paper"
          is the published code's: Xavier uniform, gain 1/√2 for queries, keys and values, 1 for the output
Shapes:   q, k [B, T, H, K], K = D / H; P φ [B, T, H, F], F = K, or 2 K with position "cosine"; v [B, T, H, K]; norm
          over all D channels; state: Σ P φ(k) vᵀ, [B, H, F, K] in float32; t is the true position in the segment
Cost:     8 D² + 4 D (F + C) FLOPs a token in chunks of C tokens, 2 D² more with the gate; state D F numbers
Raises:   ValueError if num_heads does not divide the width, for an unknown feature, and if K is odd with rotation
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from ..features import make_feature
from ..kernels.recurrence import recurrence
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import make_norm
from ..relative_positions import RelativePositions
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "t2": {"feature": "elu_one"},
    "cosine": {"position": "cosine"},
    "gated": {"gate": True, "norm": "simple_rms_norm"},
}


class TransNormer(Mixer):
    """NormAttention with a choice of features and positions."""

    @dataclass(frozen=True)
    class Config:
        """Settings of NormAttention."""

        num_heads: int = 4
        feature: str = "elu"
        """φ, by its name among the features; the paper's T1 has "elu", T2 "elu_one"."""
        position: Literal["rotation", "cosine", "none"] = "rotation"
        """P: pairs of channels rotated, [x cos, x sin], or nothing."""
        learned_angles: bool = True
        norm: Literal["rms_norm", "simple_rms_norm", "layer_norm"] = "rms_norm"
        gate: bool = False
        """Multiply with swish(W_u x)."""
        initialization: Literal["house", "paper"] = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        head_width = check_divisible(width, heads, "transnormer")
        self.query_feature = make_feature(config.feature, heads, head_width)
        self.key_feature = make_feature(config.feature, heads, head_width)
        self.position = None
        if config.position != "none":
            self.position = RelativePositions(config.position, heads, self.query_feature.width, config.learned_angles)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False) if config.gate else None
        self.norm = make_norm(config.norm, width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """The recurrence, normalised over all heads together."""
        heads = self.config.num_heads
        q = self.query_feature(split_heads(self.query(x), heads))  # B T H F
        k = self.key_feature(split_heads(self.key(x), heads))
        v = split_heads(self.value(x), heads)
        if self.position is not None:
            q, k = self.position(q, k, rows=rows)
        q = q * q.shape[-1] ** -0.5
        o, state = recurrence(q, k, v, None, rows=rows, state=state, causal=self.placement.causal)
        y = self.norm(o.flatten(2)).to(v.dtype)
        if self.gate is not None:
            y = functional.silu(self.gate(x)) * y
        return self.output(y), state

    def reset_parameters(self) -> None:
        """The paper's values, if they are asked for."""
        if self.config.initialization == "paper":
            for layer in (self.query, self.key, self.value):
                nn.init.xavier_uniform_(layer.weight, gain=2**-0.5)
            nn.init.xavier_uniform_(self.output.weight)
