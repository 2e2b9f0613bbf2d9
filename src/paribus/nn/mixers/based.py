"""Based: linear attention whose few features make the exponential of a score to second order.

    w[t, s] = 1 + z + z² / 2, z = q[t] · k[s] / √K        y = W_o o
    o[t] = Σ_{s ≤ t} w[t, s] v[s] / Σ_{s ≤ t} w[t, s]

Paper:    Arora et al. 2024, arXiv:2402.18668
Differs:  only the linear attention: the paper's models alternate it with attention in a small window, and convolutions;
          K (K + 1) / 2 products of two channels in the place of K², which weigh the same; no biases; causal=False drops
          the condition s ≤ t
Shapes:   q, k [B, T, H, K], K = key_width; φ [B, T, H, F], F = 1 + K + K (K + 1) / 2; v [B, T, H, V], V = D / H; state:
          Σ φ(k) [v, 1]ᵀ, [B, H, F, V + 1] in float32
Cost:     4 D² + 4 D H K + 4 D F + 2 (D + H F) C + 8 H K F FLOPs a token in chunks of C tokens, about; state (D + H) F
          numbers, whatever the length
Raises:   ValueError if num_heads does not divide the width or key_width is less than one
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..features import Taylor
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..segments import Rows
from ..weighted_mean import weighted_mean


class Based(Mixer):
    """Linear attention with second-order Taylor features."""

    @dataclass(frozen=True)
    class Config:
        """Settings of Based."""

        num_heads: int = 4
        key_width: int = 16
        """K, channels of a head's queries and keys; the features grow with its square."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads, key_width = placement.width, config.num_heads, config.key_width
        check_divisible(width, heads, "based")
        if key_width < 1:
            raise ValueError(f"based: key_width is {key_width}; at least 1 is needed")
        self.query = nn.Linear(width, heads * key_width, bias=False)
        self.key = nn.Linear(width, heads * key_width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.feature = Taylor(heads, key_width)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """The mean of the values weighed by Taylor features."""
        heads = self.config.num_heads
        q, k = (self.feature(split_heads(project(x), heads)) for project in (self.query, self.key))  # B T H F
        v = split_heads(self.value(x), heads)
        o, state = weighted_mean(q, k, v, rows=rows, state=state, causal=self.placement.causal)
        return self.output(o.flatten(2)), state
