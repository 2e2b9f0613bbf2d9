"""cosFormer: linear attention with ReLU features whose weights fall off as the cosine of the distance.

    o[t] = Σ_{s ≤ t} w[t, s] v[s] / Σ_{s ≤ t} w[t, s]        w[t, s] = φ(q[t]) · φ(k[s]) cos(π (t − s) / 2 M)
    cos(π (t − s) / 2 M) = c[t] c[s] + d[t] d[s], c[t] = cos(π t / 2 M), d[t] = sin(π t / 2 M)        y = W_o o

Paper:    Qin et al. 2022, arXiv:2202.08791; its published code was read, nothing of it copied
Differs:  M is the model's max_length, the paper's is the length of the sequence at hand, which would make an output
          depend on how many tokens follow; no biases; 1e-6 is added to the denominator, the code's is at least that;
          causal=False drops the condition s ≤ t; initialization "paper" is the code's, torch's own: uniform within
          ±1/√fan_in
Shapes:   φ(q), φ(k) [B, T, H, K], K = D / H; with c and d [B, T, H, 2 K]; v [B, T, H, K]; state: Σ φ(k) [v, 1]ᵀ,
          [B, H, 2 K, K + 1] in float32; t is the true position in the segment
Cost:     8 D² + 4 D (2 K + C) FLOPs a token in chunks of C tokens; state 2 D (K + 1) numbers, whatever the length
Raises:   ValueError if num_heads does not divide the width, for an unknown feature or one whose products may be
          negative, and if a segment is longer than max_length, where the cosine would turn negative
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..features import make_feature
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..segments import Rows
from ..weighted_mean import weighted_mean

PRESETS: dict[str, dict[str, Any]] = {"elu": {"feature": "elu_one"}}


class CosFormer(Mixer):
    """Linear attention re-weighted by a cosine, with a bound on the length."""

    @dataclass(frozen=True)
    class Config:
        """Settings of cosFormer."""

        num_heads: int = 4
        feature: str = "relu"
        """φ, by its name among the features."""
        initialization: Literal["house", "paper"] = "house"

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        head_width = check_divisible(width, heads, "cosformer")
        self.query_feature = make_feature(config.feature, heads, head_width)
        self.key_feature = make_feature(config.feature, heads, head_width)
        if not self.query_feature.nonnegative:
            raise ValueError(f"cosformer: products of feature '{config.feature}' may be negative; weights may not")
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """The mean of the values so weighted."""
        heads = self.config.num_heads
        q = self.query_feature(split_heads(self.query(x), heads))  # B T H K
        k = self.key_feature(split_heads(self.key(x), heads))
        v = split_heads(self.value(x), heads)
        angles = self.angles(rows, q.dtype)
        cosine, sine = angles.cos(), angles.sin()
        q, k = (torch.cat([features * cosine, features * sine], -1) for features in (q, k))  # B T H 2K
        o, state = weighted_mean(q, k, v, rows=rows, state=state, causal=self.placement.causal)
        return self.output(o.flatten(2)), state

    def angles(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        """π t / 2 M of every token, [B, T, 1, 1].

        Raises:
            ValueError: a position beyond the bound.
        """
        M = self.placement.max_length
        positions = rows.positions if rows.valid is None else torch.where(rows.valid, rows.positions, 0)
        longest = positions.shape[1] if rows.plain and rows.past is None else int(positions.amax()) + 1
        if longest > M:
            raise ValueError(f"cosformer: a sequence of {longest} tokens is longer than max_length {M}")
        return (positions.to(dtype) * (math.pi / (2 * M)))[..., None, None]

    def reset_parameters(self) -> None:
        """The paper's values, if they are asked for."""
        if self.config.initialization == "paper":
            for layer in (self.query, self.key, self.value, self.output):
                nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
