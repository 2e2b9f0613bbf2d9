"""The optimizers on offer: whose class it is, and what differs from that class's defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One optimizer."""

    summary: str
    """What it is, and its source."""
    cls: str
    """The class, as module:name."""
    settings: dict[str, Any] = field(default_factory=dict)
    """House defaults, in place of the class's."""


OPTIMIZERS: dict[str, Entry] = {
    "adamw": Entry(
        "Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)",
        "torch.optim:AdamW",
        {"betas": (0.9, 0.95), "fused": True},
    ),
}
