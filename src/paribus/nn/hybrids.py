"""Hybrids, by name: blocks and a layout that mix recurrent layers with attention, to be written as ``layout``.

They say which mixer stands where, as the papers do; sizes, norms and channel mixers are the house's unless told.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .settings import nearest


@dataclass(frozen=True)
class Hybrid:
    """What a named layout stands for in a config."""

    blocks: dict[str, dict[str, Any]]
    layout: list[str]


def _block(mixer: str, **settings: Any) -> dict[str, Any]:
    return {"mixer": {"name": mixer, **settings}, "channel": {"name": "glu"}}


def linear_attention_3_1() -> Hybrid:
    """Three layers of gated linear attention, one of softmax attention."""
    blocks = {"linear": _block("gla"), "attention": _block("attention")}
    return Hybrid(blocks, ["linear", "linear", "linear", "attention"])


def gated_delta_net_3_1() -> Hybrid:
    """Three layers of Gated DeltaNet, one of softmax attention with an output gate (as in Qwen3-Next, 2025)."""
    blocks = {"linear": _block("gated_delta_net"), "attention": _block("attention", preset="gated")}
    return Hybrid(blocks, ["linear", "linear", "linear", "attention"])


def griffin() -> Hybrid:
    """Two recurrent blocks (RG-LRU), one of local multi-query attention over 1,024 tokens (arXiv:2402.19427)."""
    local = _block("attention", preset="multi_query", window=1024)
    blocks = {"recurrent": _block("rg_lru", preset="griffin"), "local": local}
    for block in blocks.values():
        block["channel"]["activation"] = "gelu"
    return Hybrid(blocks, ["recurrent", "recurrent", "local"])


def samba() -> Hybrid:
    """Mamba and attention over a window of 2,048 tokens, in turn (Ren et al. 2024, arXiv:2406.07522)."""
    blocks = {"recurrent": _block("mamba"), "local": _block("attention", window=2048)}
    return Hybrid(blocks, ["recurrent", "local"])


def jamba() -> Hybrid:
    """One attention layer without positions among seven Mamba layers (Lieber et al. 2024, arXiv:2403.19887).

    Without the paper's mixtures of experts.
    """
    blocks = {"recurrent": _block("mamba"), "attention": _block("attention", position="none")}
    return Hybrid(blocks, [*["recurrent"] * 4, "attention", *["recurrent"] * 3])


HYBRIDS: dict[str, Callable[[], Hybrid]] = {
    "linear_attention_3_1": linear_attention_3_1,
    "gated_delta_net_3_1": gated_delta_net_3_1,
    "griffin": griffin,
    "samba": samba,
    "jamba": jamba,
}


def spell_out(model: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` part of a run with a named layout replaced by its blocks and its list of block names.

    Raises:
        ValueError: an unknown name, or blocks beside a named layout, which brings its own.
    """
    settings = copy.deepcopy(dict(model))
    name = settings.get("layout")
    if not isinstance(name, str):
        return settings
    if name not in HYBRIDS:
        raise ValueError(f"model: unknown layout '{name}'; {nearest(name, HYBRIDS)}")
    if "blocks" in settings:
        raise ValueError(
            f"model: layout '{name}' brings its own blocks; leave blocks out, or write the layout as a list"
        )
    hybrid = HYBRIDS[name]()
    return {**settings, "blocks": hybrid.blocks, "layout": hybrid.layout}
