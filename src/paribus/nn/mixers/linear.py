"""Linear attention: softmax's exponential replaced by a product of positive features.

    o[t] = Σ_{s ≤ t} (φ(q[t]) · φ(k[s])) v[s] / Σ_{s ≤ t} φ(q[t]) · φ(k[s])        φ(x) = elu(x) + 1        y = W_o o

Paper:    Katharopoulos et al. 2020, arXiv:2006.16236
Differs:  no biases; the denominator is one more column of ones in v; causal=False drops the condition s ≤ t
Shapes:   q, k, v [B, T, H, K], K = D / H; state: Σ φ(k) [v, 1]ᵀ, [B, H, K, K + 1] in float32
Cost:     8 D² + 4 D (K + C) FLOPs a token in chunks of C tokens; state D (K + 1) numbers, whatever the length
Raises:   ValueError if num_heads does not divide the width
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from ..kernels.recurrence import recurrence
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..segments import Rows

EPSILON = 1e-6  # of the denominator, which is zero where nothing was seen


class LinearAttention(Mixer):
    """Linear attention with elu + 1 features."""

    @dataclass(frozen=True)
    class Config:
        """Settings of linear attention."""

        num_heads: int = 4

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width = placement.width
        check_divisible(width, config.num_heads, "linear")
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """Numerator and denominator come from one recurrence."""
        projections = (self.query, self.key, self.value)
        q, k, v = (split_heads(project(x), self.config.num_heads) for project in projections)
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        v = functional.pad(v, (0, 1), value=1.0)
        o, state = recurrence(q, k, v, None, rows=rows, state=state, causal=self.placement.causal)
        o = o[..., :-1] / (o[..., -1:] + EPSILON)
        return self.output(o.flatten(2)), state
