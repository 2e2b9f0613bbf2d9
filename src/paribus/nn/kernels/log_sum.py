"""Running sums of exponentials, in logarithms: z[t] = log(1 + Σ_{s ≤ t} exp(x[s])) over the segment so far.

The one stands for an empty past: z is 0 before the first token. Exponents are taken of differences to a running
maximum only, so that nothing overflows; the sum itself is `scan`. Over whole segments the same sum has no order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..segments import Rows
from .scan import scan


def running_log_sum(x: Tensor, *, rows: Rows, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum before each token and after the last.

    Args:
        x: [B, T, E].
        rows: segments and padding of the tokens.
        state: [B, E], z before the first token; None is no past.

    Returns:
        [B, T, E], z[t-1], zero where a segment begins, and the state z [B, E] after `x`; float32 or wider.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    first = torch.zeros_like(x[:, 0]) if state is None else state.to(x.dtype)
    if rows.valid is not None:
        x = x.masked_fill(~rows.valid[..., None], -torch.inf)
    # The maximum is a constant for the gradient, since z does not depend on it.
    maximum = _running_maximum(x.detach(), first.detach(), rows.starts)  # B 1+T E
    added = (x - maximum[:, 1:]).exp()
    if rows.starts is not None:
        added = added + (-maximum[:, 1:]).exp().masked_fill(~rows.starts[..., None], 0)
    summed, _ = scan(
        added,
        maximum[:, :-1] - maximum[:, 1:] if rows.starts is None else _falls(maximum, rows.starts),
        rows=rows,
        state=(first - first.detach()).exp(),
        causal=True,
    )
    # At padding the scan is unspecified; the last real value goes on, as the maximum does.
    z = maximum[:, 1:] + summed.log()
    before = torch.cat([first[:, None], z[:, :-1]], 1)
    if rows.starts is not None:
        before = before.masked_fill(rows.starts[..., None], 0)
    return before, z[:, -1]


def segment_log_sum(x: Tensor, *, rows: Rows) -> Tensor:
    """z of the whole segment of each token, log(1 + Σ exp(x[s])) over all its tokens.

    Args:
        x: [B, T, E].
        rows: segments and padding of the tokens, without a past.

    Returns:
        [B, T, E], any finite number at padding; float32 or wider.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if rows.plain:
        return functional.pad(x, (0, 0, 1, 0)).logsumexp(1, keepdim=True).expand_as(x)
    if rows.valid is not None:
        x = x.masked_fill(~rows.valid[..., None], -torch.inf)
    before, _ = running_log_sum(x, rows=rows, state=None)
    z = before + functional.softplus(x - before)
    ids = rows.ids.cummax(1).values  # at padding that of the token before, so that a segment ends where the next begins
    last = torch.searchsorted(ids, ids, right=True) - 1
    return z.gather(1, last[..., None].expand_as(z))


def _falls(maximum: Tensor, starts: Tensor) -> Tensor:
    """m[t-1] - m[t]; where a segment begins, any number that is not positive, as the scan forgets there."""
    return (maximum[:, :-1] - maximum[:, 1:]).masked_fill(starts[..., None], 0)


def _running_maximum(x: Tensor, first: Tensor, starts: Tensor | None) -> Tensor:
    """[B, 1+T, E]: the largest x so far and at least z before it; begins anew, at 0 or more, with each segment."""
    x = torch.cat([first[:, None], x], 1)
    if starts is None:
        return x.cummax(1).values
    barrier = functional.pad(starts, (1, 0), value=False)[..., None]
    x = torch.where(barrier, x.clamp(min=0), x)
    reach = 1
    while reach < x.shape[1]:  # every place sees twice as far back each time, but not past a barrier
        seen = torch.where(barrier[:, reach:], -torch.inf, x[:, :-reach])
        x = torch.cat([x[:, :reach], torch.maximum(x[:, reach:], seen)], 1)
        barrier = torch.cat([barrier[:, :reach], barrier[:, reach:] | barrier[:, :-reach]], 1)
        reach *= 2
    return x
