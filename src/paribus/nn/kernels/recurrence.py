"""Gated linear recurrence, the kernel of linear attention and its gated kin.

    S[t] = Diag(a[t]) S[t-1] + k[t] v[t]ᵀ          o[t] = S[t]ᵀ q[t], or S[t] q[t] on the value side

With a bonus u for the token itself, everything else is read before the decay into the token (RWKV6):

    o[t] = (S[t-1] + Diag(u) k[t] v[t]ᵀ)ᵀ q[t]

Two-directional: that, plus the same from the end read before its own write, so that the diagonal counts once; with
scalar decay o = (Q Kᵀ ⊙ exp(-|G[t] - G[s]|)) V for G the running sum of log a. With a bonus both directions leave the
token out, which counts by its bonus, and between two tokens lie the decays of those strictly between them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..segments import Rows
from ..settings import nearest
from .choice import in_use
from .chunks import Form, Gates, Moment, chunk_length, full_precision, merge, run_form, split, weigh
from .values import weigh_values


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    readout: Literal["key", "value"] = "key",
    bonus: Tensor | None = None,
    algorithm: str = "chunked",
) -> tuple[Tensor, Tensor | None]:
    """Write k vᵀ into a decaying state, token by token, and read it with q.

    Args:
        q: [B, T, H, K]; with readout "value" [B, T, H, V].
        k: [B, T, H, K].
        v: [B, T, H, V].
        log_decay: log a ≤ 0: None, [H] constant, [B, T, H] scalar or [B, T, H, K] per channel.
        state: [B, H, K, V] before the first token; None is zero.
        readout: "key" gives Sᵀ q, "value" gives S q.
        bonus: [H, K] u, the weight of the token itself; None reads the token like all others.
        algorithm: "chunked" (by what `choice.using` has chosen), or "reference": one token after the other in float64.

    Returns:
        o [B, T, H, V], or [B, T, H, K] with readout "value", and the state after the last token in float32 or wider
        (None when two-directional).

    Raises:
        ValueError: unknown algorithm or readout, or a bonus with readout "value".
    """
    if readout not in _FORMS:
        raise ValueError(f"unknown readout '{readout}'; {nearest(readout, _FORMS)}")
    if bonus is not None and readout == "value":
        raise ValueError("recurrence: a bonus is for readout 'key' only")
    if (chosen := in_use()) is not None and algorithm == "chunked":
        options: dict[str, Any] = {"rows": rows, "state": state, "causal": causal, "readout": readout, "bonus": bonus}
        return chosen.recurrence(q, k, v, log_decay, **options)
    if log_decay is None and bonus is None and rows.plain and not causal and algorithm == "chunked":
        return _sum_over_all(readout, q, k, v), None
    wide = q.to(torch.promote_types(q.dtype, torch.float32))
    moments: dict[str, Moment] = {} if bonus is None else {"forward": "undecayed", "backward": "undecayed"}
    o, state = run_form(
        _FORMS[readout],
        algorithm,
        q if bonus is None else wide,
        {"k": k, "v": v},
        log_decay,
        widths=(k.shape[-1], v.shape[-1]),
        rows=rows,
        state=state,
        causal=causal,
        **moments,
    )
    return o if bonus is None else (o + (wide * bonus * k).sum(-1, keepdim=True) * v).to(q.dtype), state


def _sum_over_all(readout: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Where nothing decays and all tokens see all, they read one and the same sum."""
    with full_precision(q):
        wide = torch.promote_types(q.dtype, torch.float32)
        read, k, v = (x.to(wide).transpose(1, 2) for x in (q, k, v))  # B H T X
        memory = k.mT @ v  # B H K V
        return (read @ (memory if readout == "key" else memory.mT)).transpose(1, 2).to(q.dtype)


def _steps(
    readout: str, q: Tensor, writes: dict[str, Tensor], gates: Gates, state: Tensor, moment: Moment
) -> tuple[Tensor, Tensor]:
    """One token after the other."""
    outputs = []
    tokens = (x.unbind(1) for x in (q, writes["k"], writes["v"]))
    for q_t, k_t, v_t, (forget, decay) in zip(*tokens, gates.steps(q.shape[1]), strict=True):
        undecayed = forget(state)
        decayed = decay(undecayed)
        state = decayed + k_t[..., None] * v_t[..., None, :]
        memory = {"undecayed": undecayed, "decayed": decayed, "written": state}[moment]
        outputs.append(((memory.mT if readout == "key" else memory) @ q_t[..., None])[..., 0])
    return torch.stack(outputs, 1), state


def _chunked(
    q: Tensor, writes: dict[str, Tensor], gates: Gates, state: Tensor, moment: Moment
) -> tuple[Tensor, Tensor]:
    """Quadratic inside chunks, linear between them."""
    if moment == "undecayed":
        return _shifted(q, writes, gates, state)
    T, C = q.shape[1], chunk_length(q.shape[1], writes["k"].shape[-1])
    q, k, v = (split(x, C) for x in (q, writes["k"], writes["v"]))
    [[pairs]], [read], [write], keep = weigh([q], [k], gates)
    pairs = pairs.tril(-1) if moment == "decayed" else pairs
    before, state = chunk_states(write.mT @ v, keep, state)
    o = torch.baddbmm(*(x.flatten(0, 2) for x in (pairs @ v, read, before)))
    return merge(o.unflatten(0, q.shape[:3]), T), state


def _shifted(q: Tensor, writes: dict[str, Tensor], gates: Gates, state: Tensor) -> tuple[Tensor, Tensor]:
    """Reads before a token's decay and write: just before it reads, the token before it decays and writes.

    What a token before a start would write is left out; the last token decays and writes when all have read.
    """
    late = {name: functional.pad(x[:, :-1], (0, 0, 0, 0, 1, 0)) for name, x in writes.items()}
    if gates.starts is not None:
        late = {name: torch.where(gates.starts[..., None, None], 0, x) for name, x in late.items()}
    log_decay = gates.log_decay
    decay = None if log_decay is None else functional.pad(log_decay[:, :-1], (0, 0, 0, 0, 1, 0))
    o, state = _chunked(q, late, Gates(decay, gates.starts), state, "written")
    if log_decay is not None:
        state = log_decay[:, -1, ..., None].exp() * state
    return o, state + writes["k"][:, -1, ..., None] * writes["v"][:, -1, :, None]


def _chunked_values(
    q: Tensor, writes: dict[str, Tensor], gates: Gates, state: Tensor, moment: Moment
) -> tuple[Tensor, Tensor]:
    """Read on the value side; unless channels decay by themselves, that is the key side of the transposed state."""
    if gates.log_decay is None or gates.log_decay.shape[-1] == 1:
        o, state = _chunked(q, {"k": writes["v"], "v": writes["k"]}, gates, state.mT, moment)
        return o, state.mT
    T, C = q.shape[1], chunk_length(q.shape[1], writes["k"].shape[-1])
    q, k, v = (split(x, C) for x in (q, writes["k"], writes["v"]))
    weights = weigh_values((q @ v.mT).tril(-1 if moment == "decayed" else 0), k, gates)
    before, state = chunk_states(weights.write.mT @ v, weights.keep, state)
    return merge(torch.addcmul(weights.inside, weights.read, q @ before.mT), T), state


def chunk_states(added: Tensor, keep: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each chunk, [B, H, N, K, V], and the last: S[n+1] = keep[n] ⊙ S[n] + added[n].

    Args:
        added: [B, H, N, K, V].
        keep: [B, H, N, 1 or K, 1].
        state: [B, H, K, V], S[0].
    """
    before, last = _ChunkStates.apply(added, keep, state)
    return before, last


class _ChunkStates(torch.autograd.Function):
    """`chunk_states`."""

    @staticmethod
    def forward(ctx: Any, added: Tensor, keep: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        before, last = torch.empty_like(added), torch.empty_like(state)
        befores = before.unbind(2)
        befores[0].copy_(state)
        for *step, after in zip(added.unbind(2), keep.unbind(2), befores, (*befores[1:], last), strict=True):
            torch.addcmul(*step, out=after)
        ctx.save_for_backward(keep, before)
        return before, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_before: Tensor, d_last: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        keep, before = ctx.saved_tensors
        d_added, d_state = torch.empty_like(d_before), torch.empty_like(d_last)
        d_addeds = d_added.unbind(2)
        d_addeds[-1].copy_(d_last)
        steps = zip(d_before.unbind(2), keep.unbind(2), d_addeds, (d_state, *d_addeds[:-1]), strict=True)
        for *step, earlier in reversed(list(steps)):
            torch.addcmul(*step, out=earlier)
        d_keep = (d_added * before).sum_to_size(keep.shape) if ctx.needs_input_grad[1] else None
        return d_added, d_keep, d_state


_FORMS: dict[str, dict[str, Form]] = {
    "key": {"chunked": _chunked, "reference": partial(_steps, "key")},
    "value": {"chunked": _chunked_values, "reference": partial(_steps, "value")},
}
