"""Linear attention: softmax's exponential replaced by products of features, so that the past is a sum.

    o[t] = Σ_{s ≤ t} (φ(q[t]) · φ(k[s])) v[s] / Σ_{s ≤ t} φ(q[t]) · φ(k[s])        y = W_o o
    without a denominator: o[t] = norm(Σ_{s ≤ t} (P_t φ(q[t]) · P_s φ(k[s])) v[s] / √F)

Paper:    Katharopoulos et al. 2020, arXiv:2006.16236; a norm in the denominator's place: Qin et al. 2022,
          arXiv:2210.10340; the features' papers are named with
          them; positions P: Qin et al. 2023, arXiv:2307.09270
Differs:  no biases; queries and keys have feature maps of their own; the norm is RMSNorm in each head, with one weight
          for all heads; causal=False drops the condition s ≤ t; initialization "paper" is that of the published code,
          torch's own: uniform within ±1/√fan_in
Shapes:   q, k [B, T, H, K], K = key_width or D / H; φ [B, T, H, F], F = K for most features, twice that with position
          "cosine"; v [B, T, H, V], V = D / H;
          state: Σ φ(k) [v, 1]ᵀ, [B, H, F, V + 1] in float32, without the 1 where there is no denominator
Cost:     4 D² + 4 D H K + 4 D (F + C) FLOPs a token in chunks of C tokens; state D F + H F numbers, whatever the length
Raises:   ValueError if num_heads does not divide the width, key_width is negative, for an unknown feature, if sums of a
          feature's products are no denominator since they may be negative, which positions make them all, and if F is
          odd with rotation
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ..features import make_feature
from ..kernels.recurrence import recurrence
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..relative_positions import RelativePositions
from ..segments import Rows
from ..weighted_mean import weighted_mean

PRESETS: dict[str, dict[str, Any]] = {
    "relu": {"feature": "relu"},
    "dpfp": {"feature": "dpfp"},
    "t2r": {"feature": "t2r"},
    "hedgehog": {"feature": "hedgehog"},
    "performer": {"feature": "performer"},
    "norm": {"feature": "silu", "normaliser": "rms_norm"},
    "rotation": {"feature": "silu", "normaliser": "rms_norm", "position": "rotation"},
    "cosine": {"feature": "silu", "normaliser": "rms_norm", "position": "cosine"},
    "identity": {"feature": "identity", "normaliser": "rms_norm"},
}


class LinearAttention(Mixer):
    """Linear attention with a choice of features."""

    @dataclass(frozen=True)
    class Config:
        """Settings of linear attention."""

        num_heads: int = 4
        feature: str = "elu_one"
        """φ, by its name among the features."""
        key_width: int = 0
        """K, channels of a head's queries and keys; 0 is width / num_heads."""
        normaliser: Literal["sum", "rms_norm"] = "sum"
        """The denominator, or a norm in its place."""
        position: Literal["none", "rotation", "cosine"] = "none"
        """P, with learned angles: pairs of channels rotated, or [x cos, x sin]; needs the norm."""
        initialization: Literal["house", "paper"] = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        head_width = check_divisible(width, heads, "linear")
        if config.key_width < 0:
            raise ValueError(f"linear: key_width is {config.key_width}; 0 (width / num_heads) or more is needed")
        key_width = config.key_width or head_width
        self.query_feature = make_feature(config.feature, heads, key_width)
        self.key_feature = make_feature(config.feature, heads, key_width)
        if config.normaliser == "sum" and not self.query_feature.nonnegative:
            raise ValueError(
                f"linear: products of feature '{config.feature}' may be negative, so their sum is no denominator; "
                "normaliser 'rms_norm' is needed"
            )
        if config.normaliser == "sum" and config.position != "none":
            raise ValueError(
                f"linear: products turned by position '{config.position}' may be negative, so their sum is no "
                "denominator; normaliser 'rms_norm' is needed"
            )
        self.position = None
        if config.position != "none":
            self.position = RelativePositions(config.position, heads, self.query_feature.width, learned=True)
        self.query = nn.Linear(width, heads * key_width, bias=False)
        self.key = nn.Linear(width, heads * key_width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.norm = RMSNorm(head_width) if config.normaliser == "rms_norm" else None
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """One recurrence, then the normaliser."""
        heads, causal = self.config.num_heads, self.placement.causal
        q = self.query_feature(split_heads(self.query(x), heads))  # B T H F
        k = self.key_feature(split_heads(self.key(x), heads))
        v = split_heads(self.value(x), heads)  # B T H V
        if self.position is not None:
            q, k = self.position(q, k, rows=rows)
        if self.norm is None:
            o, state = weighted_mean(q, k, v, rows=rows, state=state, causal=causal)
        else:
            o, state = recurrence(q * q.shape[-1] ** -0.5, k, v, None, rows=rows, state=state, causal=causal)
            o = self.norm(o).to(v.dtype)
        return self.output(o.flatten(2)), state

    def reset_parameters(self) -> None:
        """The paper's values, if they are asked for."""
        if self.config.initialization == "paper":
            for layer in (self.query, self.key, self.value, self.output):
                nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
