"""gMLP: half of the channels gate the other half, mixed along the tokens by a matrix that begins near zero.

    z1, z2 = gelu(W_1 x), gelu(W_2 x)
    s[i] = z1[i] ⊙ (Σ_{j ≤ i} W[i, j] norm(z2[j]) + b[i] + tiny[i])          y = V s

Paper:    Liu et al. 2021, arXiv:2105.08050; "paper_attention": with tiny attention, its aMLP; "thread" and "tanh": the
          published configurations and code of HomebrewNLP-MTF (2021), read, nothing copied
Differs:  causal, by a triangular W; the LayerNorm of the gate is in the paper's equation and so is here, without shift;
          W begins with normal values so that all of a row together has std 0.01, the paper says near zero; no biases
          but b; 2 D channels before the split, "paper" has 6 D and one head. Tiny attention reads x like W_1, one head.
          "thread": no b, W with std 0.004, a matrix for each head; its maps of channels are for each head, here dense.
          "tanh" bounds the gate. causal=False drops the condition
Shapes:   W [H, M, M], b [H, M] with M = max_length; z1, z2 [B, T, H, E / H], E = expansion · D; i and j are true
          positions in the segment; state: all past norm(z2), and keys and values of the tiny attention
Cost:     6 D E + T E FLOPs a token (causal), T E more otherwise; H M² parameters for W; state E numbers for each past
          token, 2 attention_width more with tiny attention
Raises:   ValueError if num_heads does not divide E, expansion is not positive, attention_width is negative, or a
          segment is longer than max_length
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.attention import AttentionHistory, attention
from ..kernels.tokens import at_positions, mix_tokens
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import LayerNorm
from ..segments import Rows

_THREAD: dict[str, Any] = {"num_heads": 8, "gate_bias": False, "initialization": "thread"}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"expansion": 3.0},
    "paper_attention": {"expansion": 3.0, "attention_width": 64},
    "thread": _THREAD,
    "tanh": {**_THREAD, "gate_activation": "tanh"},
}


class GMLPState(NamedTuple):
    """What the gate has read so far."""

    gates: Tensor | None
    """[B, S, H, E / H]."""
    attention: AttentionHistory | None
    """None without tiny attention."""


class GMLP(Mixer):
    """Spatial gating unit between two maps of the channels, with a bound on the length."""

    @dataclass(frozen=True)
    class Config:
        """Settings of gMLP."""

        num_heads: int = 1
        """Groups of channels that have their own matrix."""
        expansion: float = 1.0
        """E / D: channels of each half."""
        attention_width: int = 0
        """Width of the one head of tiny attention; 0 is none."""
        gate_bias: bool = True
        """One for each position, at the beginning 1, so that the unit begins as the identity."""
        gate_activation: Literal["none", "tanh", "sigmoid"] = "none"
        initialization: Literal["house", "thread"] = "house"
        """W near zero, or normal with std 0.004."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, M = placement.width, placement.max_length
        expanded = round(config.expansion * width)
        if expanded < 1:
            raise ValueError(f"gmlp: expansion is {config.expansion}; a positive number is needed")
        if config.attention_width < 0:
            raise ValueError(f"gmlp: attention_width is {config.attention_width}; 0 or a positive number is needed")
        check_divisible(expanded, config.num_heads, "gmlp")
        self.value = nn.Linear(width, expanded, bias=False)
        self.gate = nn.Linear(width, expanded, bias=False)
        self.norm = LayerNorm(expanded)
        self.spatial = nn.Parameter(torch.empty(config.num_heads, M, M))
        self.spatial_bias = nn.Parameter(torch.empty(config.num_heads, M)) if config.gate_bias else None
        if config.attention_width:
            self.attention = nn.Linear(width, 3 * config.attention_width, bias=False)
            self.attention_output = nn.Linear(config.attention_width, expanded, bias=False)
        self.output = nn.Linear(expanded, width, bias=False)

    def mix(self, x: Tensor, rows: Rows, state: GMLPState | None, context: Context | None) -> tuple[Tensor, GMLPState]:
        """The token matrix refuses what is longer than it is."""
        config = self.config
        gates, history = state or (None, None)
        inner = split_heads(self.norm(functional.gelu(self.gate(x))), config.num_heads)  # B T H V
        gate, gates = mix_tokens(inner, self.spatial, rows=rows, state=gates, causal=self.placement.causal)
        if self.spatial_bias is not None:
            gate = gate + at_positions(self.spatial_bias, rows)[..., None].to(gate.dtype)
        gate = gate.flatten(2)
        if config.attention_width:
            tiny, history = self._attend(x, rows, history)
            gate = gate + tiny
        if config.gate_activation != "none":
            gate = gate.tanh() if config.gate_activation == "tanh" else gate.sigmoid()
        return self.output(functional.gelu(self.value(x)) * gate), GMLPState(gates, history)

    def _attend(self, x: Tensor, rows: Rows, history: AttentionHistory | None) -> tuple[Tensor, AttentionHistory]:
        """Tiny attention, one head: [B, T, D] -> [B, T, E]."""
        q, k, v = self.attention(x).unflatten(2, (3, 1, -1)).unbind(2)  # B T 1 K
        scale, causal = self.config.attention_width**-0.5, self.placement.causal
        o, history = attention(q, k, v, rows=rows, state=history, causal=causal, scale=scale)
        return self.attention_output(o.flatten(2)), history

    def reset_parameters(self) -> None:
        """As `initialization` says; the bias of the gate 1."""
        near_zero = 0.01 * self.placement.max_length**-0.5
        nn.init.normal_(self.spatial, std=0.004 if self.config.initialization == "thread" else near_zero)
        if self.spatial_bias is not None:
            nn.init.ones_(self.spatial_bias)
