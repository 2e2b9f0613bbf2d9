"""MLP-Mixer's token mixing: an MLP along the tokens, causal by triangular maps.

    hidden[i, u] = gelu(Σ_{j ≤ i} A[i, u, j] x[j] + a[i, u])      y[i] = Σ_{j ≤ i} Σ_u B[i, j, u] hidden[j, u] + b[i]

Paper:    Tolstikhin et al. 2021, arXiv:2105.01601; "thread": maps for each head, relu behind a norm, as the published
          configurations of HomebrewNLP-MTF (2021) have it; read, nothing copied
Differs:  causal, with `token_expansion` hidden units at each position, so that both maps can be block-triangular; their
          rows are scaled by √(max_length / (i + 1)), so that every position begins with the same variance; each head
          of channels has its own maps; no biases. "paper" has Mixer-B's two hidden units a position, biases and no
          scale; it is the published form when causal=False and sequences have max_length tokens (in shorter ones,
          hidden units of missing positions are missing too). "thread": all heads share the weight of one LayerNorm
          without shift. causal=False drops the condition and the scale
Shapes:   A [H U, M, M], B [H U, M, M] with U = token_expansion and M = max_length; x in heads [B, T, H, D / H]; i and
          j are true positions in the segment; state: all past x and hidden
Cost:     2 U T D FLOPs a token (causal), twice that otherwise; 2 U H M² parameters; state (1 + U) D numbers for each
          past token
Raises:   ValueError if num_heads does not divide the width, token_expansion is below 1, or a segment is longer than
          max_length
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.tokens import at_positions, mix_tokens
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import LayerNorm
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"token_expansion": 2, "biases": True, "row_scale": False},
    "thread": {
        "num_heads": 8,
        "activation": "relu",
        "hidden_norm": True,
        "row_scale": False,
        "initialization": "thread",
    },
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": functional.gelu, "relu": functional.relu}


class MLPMixerState(NamedTuple):
    """What each of the two maps has read so far."""

    inputs: Tensor | None
    """[B, S, H, V]."""
    hidden: Tensor | None
    """[B, S, H U, V]."""


class MLPMixer(Mixer):
    """Token-mixing MLP with a bound on the length."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the token-mixing MLP."""

        num_heads: int = 1
        """Groups of channels that have their own maps."""
        token_expansion: int = 1
        """Hidden units at each position."""
        activation: Literal["gelu", "relu"] = "gelu"
        hidden_norm: bool = False
        """LayerNorm over the channels of a head, before the activation."""
        row_scale: bool = True
        """Give every position of a causal map the same variance."""
        biases: bool = False
        """One for each hidden unit and one for each position."""
        initialization: Literal["house", "thread"] = "house"
        """Maps normal with variance 1 over what a row reads at most, as the paper's code; or with std 0.004."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        head_width = check_divisible(placement.width, config.num_heads, "mlp_mixer")
        if config.token_expansion < 1:
            raise ValueError(f"mlp_mixer: token_expansion is {config.token_expansion}; 1 or more is needed")
        M, units = placement.max_length, config.num_heads * config.token_expansion
        self.first = nn.Parameter(torch.empty(units, M, M))
        self.second = nn.Parameter(torch.empty(units, M, M))
        self.first_bias = nn.Parameter(torch.empty(units, M)) if config.biases else None
        self.second_bias = nn.Parameter(torch.empty(config.num_heads, M)) if config.biases else None
        self.norm = LayerNorm(head_width) if config.hidden_norm else None

    def mix(
        self, x: Tensor, rows: Rows, state: MLPMixerState | None, context: Context | None
    ) -> tuple[Tensor, MLPMixerState]:
        """Both maps refuse what is longer than they are."""
        config, causal = self.config, self.placement.causal
        inputs, hidden = state or (None, None)
        scale = self._scale(rows, x.dtype)
        y, inputs = mix_tokens(split_heads(x, config.num_heads), self.first, rows=rows, state=inputs, causal=causal)
        y = _biased(scale * y, self.first_bias, rows)  # B T H·U V
        y = _ACTIVATIONS[config.activation](y if self.norm is None else self.norm(y))
        y, hidden = mix_tokens(y, self.second, rows=rows, state=hidden, causal=causal)
        y = y.unflatten(2, (config.num_heads, config.token_expansion)).sum(3)
        return _biased(scale * y, self.second_bias, rows).flatten(2), MLPMixerState(inputs, hidden)

    def _scale(self, rows: Rows, dtype: torch.dtype) -> Tensor | float:
        """Of the maps' rows, as [B, T, 1, 1] at their outputs, which are fewer numbers."""
        if not (self.placement.causal and self.config.row_scale):
            return 1.0
        read = (rows.positions.clamp(min=0) + 1).to(torch.promote_types(dtype, torch.float32))
        return (self.placement.max_length / read).sqrt().to(dtype)[..., None, None]

    def reset_parameters(self) -> None:
        """As `initialization` says; biases zero."""
        M, thread = self.placement.max_length, self.config.initialization == "thread"
        nn.init.normal_(self.first, std=0.004 if thread else M**-0.5)
        nn.init.normal_(self.second, std=0.004 if thread else (M * self.config.token_expansion) ** -0.5)
        for bias in (self.first_bias, self.second_bias):
            if bias is not None:
                nn.init.zeros_(bias)


def _biased(y: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
    """[B, T, G, V], plus what `bias` [G, M] holds for the position."""
    return y if bias is None else y + at_positions(bias, rows)[..., None].to(y.dtype)
