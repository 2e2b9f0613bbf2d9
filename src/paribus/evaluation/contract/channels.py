"""What holds for channel mixers only: a width that can be solved for, losses of their own, and tokens alone."""

from __future__ import annotations

import torch

from paribus.nn.mixer import Context

from .semantics import check_pure
from .subjects import Check, Kind, agree, build, finite, refusal, tokens

SEGMENTS = torch.tensor([[1] * 9, [0, 0, 2, 2, 2, 3, 3, 0, 3], [0] * 9])


def check_expansion(kind: Kind, name: str) -> None:
    """`expansion` sets the size, which is how sizes are matched; one that leaves nothing is refused."""
    sizes = [
        sum(parameter.numel() for parameter in build(kind, name, settings={"expansion": expansion}).parameters())
        for expansion in (1.0, 2.0, 3.0)
    ]
    assert sizes[0] < sizes[1] < sizes[2], f"{name}: expansion: 1, 2, 3 give {sizes} parameters"
    message = refusal(f"{name}: expansion 0", lambda: build(kind, name, settings={"expansion": 0.0}))
    assert "expansion" in message, f"{name}: expansion 0: the refusal does not name it: {message}"


def check_losses(kind: Kind, name: str) -> None:
    """What it adds to the loss are finite scalars that change no answer and that padding does not change."""
    module, x = build(kind, name, loud=True), tokens(3, 9)
    context, quiet = Context(), Context()
    y, _ = module(x, segments=SEGMENTS, context=context)
    agree(f"{name}: losses: answers with a context", y, module(x, segments=SEGMENTS)[0], 0.0)
    padding = SEGMENTS == 0
    module(torch.where(padding[..., None], 3 * tokens(3, 9, seed=5), x), segments=SEGMENTS, context=quiet)
    assert list(context.losses) == list(quiet.losses), f"{name}: losses: padding changes which there are"
    for part, loss in context.losses.items():
        assert loss.shape == (), f"{name}: losses: {part} has shape {tuple(loss.shape)}, not a scalar"
        finite(f"{name}: losses: {part}", loss)
        agree(f"{name}: losses: {part} with other values at padding", quiet.losses[part], loss, 1e-12)
    nothing = Context()
    module(x, segments=torch.zeros_like(SEGMENTS), context=nothing)
    for part, loss in nothing.losses.items():
        finite(f"{name}: losses: {part} of rows of padding", loss)


def check_tokens_alone(kind: Kind, name: str) -> None:
    """Each token's output depends on that token only, whatever the segments; nothing is kept."""
    module, x = build(kind, name, loud=True), tokens(3, 9)
    y, state = module(x, keep_state=True)
    assert state is None, f"{name}: tokens alone: a state was returned"
    alone = torch.stack([module(x[:, t : t + 1])[0][:, 0] for t in range(9)], 1)
    agree(f"{name}: tokens alone", y, alone, 1e-12)
    order = torch.tensor([2, 0, 1])
    agree(f"{name}: rows: batch permuted", module(x[order])[0], y[order], 1e-12)
    packed, real = module(x, segments=SEGMENTS)[0], SEGMENTS != 0
    finite(f"{name}: tokens alone: packed and padded", packed)
    agree(f"{name}: tokens alone: packed and padded", packed[real], y[real], 1e-12)


CHANNELS_ONLY: dict[str, Check] = {"expansion": check_expansion, "losses": check_losses}
"""Of every channel mixer."""
ALONE: dict[str, Check] = {"tokens_alone": check_tokens_alone, "pure": check_pure}
"""Of those that look at each token alone."""
