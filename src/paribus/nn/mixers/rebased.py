"""ReBased: linear attention with squared scores of normalised queries and keys, the square's place and width learned.

    w[t, s] = (q'[t] · k'[s])² / K, x' = g ⊙ layer_norm(x) + b        y = W_o o
    o[t] = Σ_{s ≤ t} w[t, s] v[s] / Σ_{s ≤ t} w[t, s]

Paper:    Aksenov et al. 2024, arXiv:2402.10644
Differs:  only the linear attention: the paper's models alternate it with convolutions; g and b of each head, and of
          queries and keys, its own; no other biases; K (K + 1) / 2 products of two channels in the place of K², which
          weigh the same; causal=False drops the condition s ≤ t
Shapes:   q, k [B, T, H, K], K = key_width; φ [B, T, H, F], F = K (K + 1) / 2; v [B, T, H, V], V = D / H; state:
          Σ φ(k) [v, 1]ᵀ, [B, H, F, V + 1] in float32
Cost:     4 D² + 4 D H K + 4 D F + 2 (D + H F) C + 8 H K F FLOPs a token in chunks of C tokens, about; state (D + H) F
          numbers, whatever the length
Raises:   ValueError if num_heads does not divide the width or key_width is less than two
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..features import Rebased
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..segments import Rows
from ..weighted_mean import weighted_mean


class ReBased(Mixer):
    """Linear attention with learned quadratic features."""

    @dataclass(frozen=True)
    class Config:
        """Settings of ReBased."""

        num_heads: int = 4
        key_width: int = 16
        """K, channels of a head's queries and keys; the features grow with its square."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads, key_width = placement.width, config.num_heads, config.key_width
        check_divisible(width, heads, "rebased")
        if key_width < 2:
            raise ValueError(f"rebased: key_width is {key_width}; at least 2 is needed, as one channel has no variance")
        self.query = nn.Linear(width, heads * key_width, bias=False)
        self.key = nn.Linear(width, heads * key_width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.query_feature = Rebased(heads, key_width)
        self.key_feature = Rebased(heads, key_width)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """The mean of the values weighed by squared scores."""
        heads = self.config.num_heads
        q = self.query_feature(split_heads(self.query(x), heads))  # B T H F
        k = self.key_feature(split_heads(self.key(x), heads))
        v = split_heads(self.value(x), heads)
        o, state = weighted_mean(q, k, v, rows=rows, state=state, causal=self.placement.causal)
        return self.output(o.flatten(2)), state
