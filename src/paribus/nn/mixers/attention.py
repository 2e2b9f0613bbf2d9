"""Attention: scores of queries and keys, normalised over the tokens that a query sees, weigh the values.

    x[t, s] = q[t]·k[s] / √K + b[t, s]        o[t] = Σ_{s ≤ t} w[t, s] v[s]        y = W_o (g ⊙ o)

    softmax  e^x / Σ e^x      softmax_one  e^x / (1 + Σ e^x)      sink  e^x / (e^z + Σ e^x)
    sigmoid  1 / (1 + n e^−x)      relu  max(x, 0) / n      softpick  max(e^x − 1, 0) / Σ |e^x − 1|

    b:  alibi  −slope[h] |t − s|      relative_bias  table[bucket(t − s), h]      toeplitz  table[h, t − s]      else 0
    rotary, rotary_2d and xpos turn pairs of q's and k's channels by their position before

Paper:    Vaswani et al. 2017, arXiv:1706.03762; grouped queries: Ainslie et al. 2023, arXiv:2305.13245; window: Beltagy
          et al. 2020, arXiv:2004.05150; positions: named in positions.py and position_bias.py; softmax_one: Miller
          2023; sink: as gpt-oss, 2025; sigmoid: Ramapuram et al. 2024, arXiv:2409.04431; relu: Wortsman et al. 2023,
          arXiv:2309.08586; softpick: Zuhri et al. 2025, arXiv:2504.20966; slots: Gu et al. 2024, arXiv:2410.10781;
          gate: Qiu et al. 2025, arXiv:2505.06708
Differs:  no biases (as Llama); n is the number of tokens that this query sees, where the papers take one length for
          all; softpick has no ε; the value slot has a score of zero, where the paper adds its value to the output;
          causal=False drops the condition s ≤ t; b of alibi is −slope · |t − s| then, and xpos is rotary. Each layer
          has its own table of relative_bias, T5 has one for all, and does not divide scores by √K
Shapes:   q [B, T, H, K]; k, v [B, T, H / queries_per_key, K] with K = D / H; state: all keys, values, or the window's
Cost:     8 D² + 4 T D FLOPs a token (without grouping and gate); state 2 D numbers for each past token. Learned biases
          are added to blocks of scores, outside of torch's fused attention
Raises:   ValueError if num_heads does not divide the width or queries_per_key num_heads; if the share of K that is
          rotated is no multiple of 2, with rotary_2d of 4; if rotary_2d gets no grid, or buckets cannot be made
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..kernels.attention import AttentionHistory, attention
from ..mixer import Context, Mixer, Placement, check_divisible, split_heads
from ..norm import RMSNorm
from ..position_bias import RelativeBias, ToeplitzBias
from ..positions import ROTATIONS, Rotary, alibi_slopes
from ..segments import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "multi_query": {"num_heads": 4, "queries_per_key": 4},
    "grouped": {"num_heads": 4, "queries_per_key": 2},
    "local": {"window": 128},
    "no_position": {"position": "none"},
    "alibi": {"position": "alibi"},
    "partial_rotary": {"rotary_share": 0.25},
    "xpos": {"position": "xpos"},
    "relative_bias": {"position": "relative_bias"},
    "toeplitz": {"position": "toeplitz"},
    "normed_keys": {"query_key_norm": True},
    "gated": {"output_gate": "channel"},
    "gated_heads": {"output_gate": "head"},
    "softmax_one": {"normaliser": "softmax_one"},
    "sink": {"normaliser": "sink"},
    "local_sink": {"normaliser": "sink", "window": 128},
    "sigmoid": {"normaliser": "sigmoid"},
    "sigmoid_alibi": {"normaliser": "sigmoid", "position": "alibi", "query_key_norm": True},
    "relu": {"normaliser": "relu"},
    "softpick": {"normaliser": "softpick"},
    "key_slot": {"slot": "key"},
    "value_slot": {"slot": "value"},
    "key_value_slot": {"slot": "key_value"},
}


class Attention(Mixer):
    """Multi-head attention: score × normaliser × slot × gate × position."""

    @dataclass(frozen=True)
    class Config:
        """Settings of attention."""

        num_heads: int = 4
        queries_per_key: int = 1
        """Query heads that share one key and value head; num_heads makes it multi-query."""
        window: int = 0
        """True positions seen to each side, the token's own included; 0 is no limit."""
        position: Literal["rotary", "rotary_2d", "xpos", "alibi", "relative_bias", "toeplitz", "none"] = "rotary"
        rotary_base: float = 10_000.0
        rotary_share: float = 1.0
        """Of rotary, rotary_2d and xpos: the share of a head's channels that are rotated."""
        num_buckets: int = 32
        """Of relative_bias: how many numbers a head has."""
        max_distance: int = 128
        """Of relative_bias: where the last bucket begins, at the latest."""
        normaliser: Literal["softmax", "softmax_one", "sink", "sigmoid", "relu", "softpick"] = "softmax"
        """How scores become weights; sink: softmax beside one learned score z a head, whose weight is given away."""
        slot: Literal["none", "key", "value", "key_value"] = "none"
        """What is learned of one more key and value that every query sees; the rest of it is zero."""
        output_gate: Literal["none", "head", "channel"] = "none"
        """g = sigmoid(W_g x), one number for each head or channel of o."""
        query_key_norm: bool = False
        """RMS-normalise queries and keys in each head, before their rotation."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        width, heads = placement.width, config.num_heads
        self.head_width = check_divisible(width, heads, "attention")
        if config.queries_per_key < 1 or heads % config.queries_per_key:
            raise ValueError(f"queries_per_key {config.queries_per_key} does not divide num_heads {heads}")
        if config.window < 0:
            raise ValueError(f"window is {config.window}; 0 (no limit) or a positive number of tokens is needed")
        self.rotation = _rotation(config, self.head_width, placement)
        self.position_bias = _position_bias(config, placement)
        self.num_keys = heads // config.queries_per_key
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, self.num_keys * self.head_width, bias=False)
        self.value = nn.Linear(width, self.num_keys * self.head_width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        gates = {"none": 0, "head": heads, "channel": width}[config.output_gate]
        self.gate = nn.Linear(width, gates, bias=False) if gates else None
        normed = config.query_key_norm
        self.query_norm, self.key_norm = (RMSNorm(self.head_width) if normed else None for _ in range(2))
        self.sink = nn.Parameter(torch.empty(heads)) if config.normaliser == "sink" else None
        self.slot_key, self.slot_value = (
            nn.Parameter(torch.empty(self.num_keys, self.head_width)) if part in config.slot.split("_") else None
            for part in ("key", "value")
        )

    def mix(
        self, x: Tensor, rows: Rows, state: AttentionHistory | None, context: Context | None
    ) -> tuple[Tensor, AttentionHistory]:
        """Attend; keys are kept rotated, as true positions never change."""
        config = self.config
        q = split_heads(self.query(x), config.num_heads)  # B T H K
        k, v = (split_heads(project(x), self.num_keys) for project in (self.key, self.value))  # B T G K
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rotation is not None:
            q, k = self.rotation(q, k, rows, context)
        o, state = attention(
            q,
            k,
            v,
            rows=rows,
            state=state,
            causal=self.placement.causal,
            scale=self.head_width**-0.5,
            window=config.window,
            normaliser="softmax" if config.normaliser == "sink" else config.normaliser,
            slopes=alibi_slopes(config.num_heads, q) if config.position == "alibi" else None,
            distance_bias=None if self.position_bias is None else self.position_bias(),
            sink=self.sink,
            slot=None if config.slot == "none" else (self.slot_key, self.slot_value),
        )
        if self.gate is not None:
            o = o * split_heads(self.gate(x).sigmoid(), config.num_heads)
        return self.output(o.flatten(2)), state

    def reset_parameters(self) -> None:
        """The sink's score zero, so that it begins as softmax_one; slots normal with std 0.02, as their paper."""
        if self.sink is not None:
            nn.init.zeros_(self.sink)
        for slot in (self.slot_key, self.slot_value):
            if slot is not None:
                nn.init.normal_(slot, std=0.02)


def _rotation(config: Attention.Config, head_width: int, placement: Placement) -> Rotary | None:
    if config.position not in ROTATIONS:
        return None
    width = round(config.rotary_share * head_width)
    if not 0 < width <= head_width or abs(width - config.rotary_share * head_width) > 1e-6:
        raise ValueError(
            f"rotary_share {config.rotary_share} of a head's {head_width} channels is no number of channels"
        )
    return ROTATIONS[config.position](width, config.rotary_base, placement)


def _position_bias(config: Attention.Config, placement: Placement) -> nn.Module | None:
    causal, heads, longest = placement.causal, config.num_heads, placement.max_length
    if config.position == "relative_bias":
        return RelativeBias(causal, heads, config.num_buckets, config.max_distance)
    if config.position == "toeplitz":
        return ToeplitzBias(causal, heads, reach=min(config.window or longest, longest))
    return None
