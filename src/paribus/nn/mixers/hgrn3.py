"""HGRN3: the simple decay, a sigmoid whose learned offset lets it begin by forgetting one part in a hundred.

    f[t] = sigmoid(W_f x[t] + Δ)                 k[t] = 1 - f[t]         q[t] = silu(W_q x[t])
    S[t] = Diag(f[t]) S[t-1] + k[t] v[t]ᵀ        o[t] = S[t]ᵀ q[t]       y = W_o norm(o)

Δ begins at log(p / (1 - p)), p = 0.99. With one decay for each head, keys are silu(W_k x[t]) instead.

Paper:    none by this name; the decay is that of Qin et al. 2025, "Elucidating the Design Space of Decay in Linear
          Attention"; notes on published code were read, nothing was copied
Differs:  no biases but Δ; causal=False adds the same recurrence from the end, without counting the token itself twice
Shapes:   q, k, f, v [B, T, H, K], K = D / H; state: S [B, H, K, K] in float32
Cost:     8 D² + 4 D K + 3 D C FLOPs a token in chunks of C tokens; state D K numbers, whatever the length
Raises:   ValueError if num_heads does not divide the width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from ..decay import make_decay
from ..kernels.recurrence import recurrence
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {"scalar": {"granularity": "scalar"}}


class HGRN3(Mixer):
    """Gated linear recurrence with the simple decay."""

    @dataclass(frozen=True)
    class Config:
        """Settings of HGRN3."""

        num_heads: int = 4
        granularity: Literal["scalar", "channel"] = "channel"
        """One decay for each head, or one for each key channel, which is then the key too."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        head_width = check_divisible(width, heads, "hgrn3")
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False) if config.granularity == "scalar" else None
        self.value = nn.Linear(width, width, bias=False)
        self.decay = make_decay("sigmoid_offset", placement, heads, head_width, config.granularity)
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: Tensor | None, context: Context | None) -> tuple[Tensor, Tensor | None]:
        """The recurrence, normalised over all heads."""
        heads = self.config.num_heads
        q, v = split_heads(functional.silu(self.query(x)), heads), split_heads(self.value(x), heads)
        gate = self.decay(x, rows, None, context)
        k = gate.complement if self.key is None else split_heads(functional.silu(self.key(x)), heads)
        o, state = recurrence(q, k, v, gate.log_decay, rows=rows, state=state, causal=self.placement.causal)
        return self.output(self.norm(o.flatten(2))), state
