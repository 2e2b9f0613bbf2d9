"""What holds for channel mixers only: every token alone, and a width that can be solved for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .subjects import CHANNEL, agree, build, refusal, tokens


def check_tokens_alone(name: str) -> None:
    """Each token's output depends on that token only."""
    module, x = build(CHANNEL, name, loud=True), tokens(3, 9)
    alone = torch.stack([module(x[:, t : t + 1])[0][:, 0] for t in range(9)], 1)
    agree(f"{name}: tokens alone", module(x)[0], alone, 1e-12)
    order = torch.tensor([2, 0, 1])
    agree(f"{name}: rows: batch permuted", module(x[order])[0], module(x)[0][order], 1e-12)


def check_expansion(name: str) -> None:
    """`expansion` sets the size, which is how sizes are matched; one that leaves nothing is refused."""
    sizes = [
        sum(parameter.numel() for parameter in build(CHANNEL, name, settings={"expansion": expansion}).parameters())
        for expansion in (1.0, 2.0, 3.0)
    ]
    assert sizes[0] < sizes[1] < sizes[2], f"{name}: expansion: 1, 2, 3 give {sizes} parameters"
    message = refusal(f"{name}: expansion 0", lambda: build(CHANNEL, name, settings={"expansion": 0.0}))
    assert "expansion" in message, f"{name}: expansion 0: the refusal does not name it: {message}"


CHANNELS_ONLY: dict[str, Callable[[str], None]] = {
    "tokens_alone": check_tokens_alone,
    "expansion": check_expansion,
}
