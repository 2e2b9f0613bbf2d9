"""Gated delta rule, the kernel of DeltaNet and its gated kin: decay, erase what the key holds, write the value.

    u[t] = β[t] (v[t] - (Diag(a[t]) S[t-1])ᵀ r[t])          S[t] = Diag(a[t]) S[t-1] + k[t] u[t]ᵀ + k₂[t] v₂[t]ᵀ

and o[t] = S[t]ᵀ q[t]. With r = k and no second write that is S[t] = (I - β k kᵀ) Diag(a) S[t-1] + β k vᵀ. With v = 0
and r that reads before the decay it is diagonal plus low rank, S[t] = (Diag(a) - β k rᵀ) S[t-1] + k₂ v₂ᵀ.
Inside a chunk the pseudo-values u solve one unit lower triangular system (Yang et al. 2024, arXiv:2406.06484 and
arXiv:2412.06464). Two-directional: that, plus the same from the end read before its own writes, so that the diagonal
counts once.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..segments import Rows
from .choice import in_use
from .chunks import Gates, Moment, chunk_length, full_precision, merge, run_form, split, weigh


def delta(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    write_strength: Tensor,
    log_decay: Tensor | None,
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    erase: Tensor | None = None,
    erase_undecayed: bool = False,
    write: tuple[Tensor, Tensor] | None = None,
    algorithm: str = "chunked",
) -> tuple[Tensor, Tensor | None]:
    """Correct a decaying state so that the key k holds the value v, token by token, and read it with q.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K], of length at most 1 if the state is to stay bounded.
        v: [B, T, H, V]; None is zero, which only erases.
        write_strength: [B, T, H] β; in (0, 1) an interpolation of old and new value, up to 2 a reflection.
        log_decay: log a ≤ 0: None, [H] constant, [B, T, H] scalar or [B, T, H, K] per channel.
        state: [B, H, K, V] before the first token; None is zero.
        erase: [B, T, H, K] r, which reads what is corrected; None is k.
        erase_undecayed: r reads the state before the decay into its token instead of after it.
        write: k₂ [B, T, H, K] and v₂ [B, T, H, V], written as they are beside the correction.
        algorithm: "chunked" (by what `choice.using` has chosen), or "reference": one token after the other in float64.

    Returns:
        o [B, T, H, V], and the state after the last token in float32 or wider (None when two-directional).

    Raises:
        ValueError: unknown algorithm, or neither v nor a second write.
    """
    writes = {"k": k, "strength": write_strength[..., None]}
    if v is not None:
        writes["v"] = v
    if erase is not None:
        writes["erase"] = erase
    if write is not None:
        writes["second_k"], writes["second_v"] = write
    elif v is None:
        raise ValueError("delta: nothing to write: v and write are both None")
    if (chosen := in_use()) is not None and algorithm == "chunked":
        special = {"erase": erase, "erase_undecayed": erase_undecayed, "write": write}
        return chosen.delta(q, k, v, write_strength, log_decay, rows=rows, state=state, causal=causal, **special)
    return run_form(
        {"chunked": partial(_chunked, erase_undecayed), "reference": partial(_steps, erase_undecayed)},
        algorithm,
        q,
        writes,
        log_decay,
        widths=(k.shape[-1], (write[1] if v is None and write is not None else writes["v"]).shape[-1]),
        rows=rows,
        state=state,
        causal=causal,
        backward="undecayed" if erase_undecayed else "decayed",
    )


def _steps(
    erase_undecayed: bool, q: Tensor, writes: dict[str, Tensor], gates: Gates, state: Tensor, moment: Moment
) -> tuple[Tensor, Tensor]:
    """One token after the other."""
    outputs = []
    tokens = [{"q": q_t} for q_t in q.unbind(1)]
    for name, x in writes.items():
        for token, x_t in zip(tokens, x.unbind(1), strict=True):
            token[name] = x_t
    for token, (forget, decay) in zip(tokens, gates.steps(q.shape[1]), strict=True):
        undecayed = forget(state)
        decayed = decay(undecayed)
        held = _read(undecayed if erase_undecayed else decayed, token.get("erase", token["k"]))
        correction = token["strength"] * (token["v"] - held if "v" in token else -held)
        state = decayed + token["k"][..., None] * correction[..., None, :]
        if "second_k" in token:
            state = state + token["second_k"][..., None] * token["second_v"][..., None, :]
        memory = {"undecayed": undecayed, "decayed": decayed, "written": state}[moment]
        outputs.append(_read(memory, token["q"]))
    return torch.stack(outputs, 1), state


def _read(state: Tensor, q: Tensor) -> Tensor:
    """S [B, H, K, V] and q [B, H, K] -> Sᵀ q [B, H, V]."""
    return (q[..., None, :] @ state)[..., 0, :]


def _chunked(
    erase_undecayed: bool, q: Tensor, writes: dict[str, Tensor], gates: Gates, state: Tensor, moment: Moment
) -> tuple[Tensor, Tensor]:
    """A triangular system inside chunks; between them S[n+1] = keep ⊙ S[n] + writeᵀ (target - held S[n]) + added."""
    T, C = q.shape[1], chunk_length(q.shape[1], q.shape[-1])
    q = split(q, C)
    chunks = {name: split(x, C) for name, x in writes.items()}
    k, strength, target, added = chunks["k"], chunks["strength"], chunks.get("v"), None
    starts = None if gates.starts is None else split(gates.starts[..., None, None], C)
    erase = _Read(chunks.get("erase", k), "undecayed" if erase_undecayed else "decayed", starts)
    reads = (_Read(q, moment, starts), erase)
    keys = [chunks[name] for name in ("k", "second_k") if name in chunks]
    weights = weigh([one.query for one in reads], keys, gates)
    (pairs, *beside), (overlaps, *met) = (
        [one.inside(x) for x in row] for one, row in zip(reads, weights.pairs, strict=True)
    )
    read, hold = (one.before(x) for one, x in zip(reads, weights.read, strict=True))
    write, keep = weights.write[0], weights.keep
    if met:
        values = chunks["second_v"]
        target = -(met[0] @ values) if target is None else target - met[0] @ values
        added = weights.write[1].mT @ values
    solve = _UnitInverse.apply(strength * overlaps) * strength.mT
    flat = (solve @ target, solve @ hold, write, keep, added, state)
    before, u, after = _ChunkStates.apply(*(None if x is None else x.flatten(0, 1) for x in flat))
    o = torch.baddbmm(*(x.flatten(0, -3) for x in (pairs.flatten(0, 1) @ u, read, before))).unflatten(0, q.shape[:3])
    return merge(o + beside[0] @ values if beside else o, T), after.unflatten(0, q.shape[:2])


class _Read(NamedTuple):
    """One read of each token at its moment; undecayed is what the token before could read once it had written."""

    q: Tensor
    """[B, H, N, C, K]."""
    moment: Moment
    starts: Tensor | None
    """[B, H, N, C, 1] bool or None."""

    @property
    def query(self) -> Tensor:
        """What to weigh: q at the token whose moment it shares."""
        return self.q.roll(-1, -2) if self.moment == "undecayed" else self.q

    def inside(self, pairs: Tensor) -> Tensor:
        """The weights [B, H, N, C, C] of what is read inside the chunk, from those of `query`."""
        if self.moment == "undecayed":
            return self._later(pairs, torch.zeros_like(pairs[..., :1, :]))
        return pairs.tril(-1) if self.moment == "decayed" else pairs

    def before(self, read: Tensor) -> Tensor:
        """The weights [B, H, N, C, K] of what is read of the state before the chunk."""
        return self._later(read, self.q[..., :1, :]) if self.moment == "undecayed" else read

    def _later(self, x: Tensor, first: Tensor) -> Tensor:
        x = torch.cat([first, x[..., :-1, :]], -2)
        return x if self.starts is None else torch.where(self.starts, 0, x)


class _UnitInverse(torch.autograd.Function):
    """(I + L)⁻¹ for L the part of [..., C, C] strictly below the diagonal."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
        inverse = torch.linalg.solve_triangular(matrix, identity, upper=False, unitriangular=True)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_inverse: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        with full_precision(inverse):
            return (inverse.mT @ d_inverse @ inverse.mT).tril_(-1).neg_()


class _ChunkStates(torch.autograd.Function):
    """The states before each of N chunks, the pseudo-values and the last state; G = B H.

    values[n] = target[n] - held[n] S[n]          S[n+1] = keep[n] ⊙ S[n] + write[n]ᵀ values[n] + added[n]

    target, values [G, N, C, V]; held, write [G, N, C, K]; keep [G, N, 1 or K, 1]; states [G, (N,) K, V]; added
    [G, N, K, V] or None for nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, target: Tensor, held: Tensor, write: Tensor, keep: Tensor, added: Tensor | None, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        before, values = [], []
        for n in range(target.shape[1]):
            before.append(state)
            values.append(torch.baddbmm(target[:, n], held[:, n], state, alpha=-1))
            kept = keep[:, n] * state if added is None else torch.addcmul(added[:, n], keep[:, n], state)
            state = torch.baddbmm(kept, write[:, n].mT, values[-1])
        ctx.save_for_backward(held, write, keep, *(stacked := (torch.stack(before, 1), torch.stack(values, 1))))
        return *stacked, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_before: Tensor, d_values: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        held, write, keep, before, values = ctx.saved_tensors
        targets, afters = [], []
        with full_precision(held):
            for n in reversed(range(held.shape[1])):
                afters.append(d_state)
                targets.append(torch.baddbmm(d_values[:, n], write[:, n], d_state))
                kept = torch.addcmul(d_before[:, n], keep[:, n], d_state)
                d_state = torch.baddbmm(kept, held[:, n].mT, targets[-1], alpha=-1)
            d_after, d_target = torch.stack(afters[::-1], 1), torch.stack(targets[::-1], 1)
            d_held, d_write = (d_target @ before.mT).neg_(), values @ d_after.mT
        d_keep = (d_after * before).sum_to_size(keep.shape) if ctx.needs_input_grad[3] else None
        return d_target, d_held, d_write, d_keep, d_after if ctx.needs_input_grad[4] else None, d_state
