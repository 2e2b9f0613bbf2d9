"""The elementwise first-order recurrence h[t] = exp(log_decay[t]) h[t-1] + x[t], in two levels.

The sequence is cut into chunks. All chunks advance together, one step at a time, first only to find what each
adds by its end; a short loop then carries the state from chunk to chunk; a second pass over all chunks writes
the answer. Decays are only ever multiplied, never divided, so that strong decay is exact.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..segments import Rows
from ..settings import nearest
from .cost import report_flops

ALGORITHMS = ("two_level", "reference")


def scan(
    x: Tensor,
    log_decay: Tensor,
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    algorithm: str = "two_level",
) -> tuple[Tensor, Tensor | None]:
    """h[t] = exp(log_decay[t]) h[t-1] + x[t], real, or complex when both inputs are.

    Two-directional: h plus what the same recurrence, run from the end, holds just before each token:
    exp(log_decay[t+1]) b[t+1] with b[t] = exp(log_decay[t+1]) b[t+1] + x[t].

    Args:
        x: [B, T, E].
        log_decay: [B, T, E], real part at most 0.
        rows: segments and padding of the tokens.
        state: [B, E], h before the first token; None is no past.
        causal: one direction, from the past.
        algorithm: "two_level", or "reference", step by step in float64.

    Returns:
        h [B, T, E], unspecified at padding, and the last state [B, E] (None unless causal).

    Raises:
        ValueError: unknown algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm '{algorithm}'; {nearest(algorithm, ALGORITHMS)}")
    exact = algorithm == "reference"
    compute = torch.promote_types(x.dtype, torch.float64 if exact else torch.float32)
    inputs, log_decay = x.to(compute), log_decay.to(compute)
    if rows.valid is not None:
        inputs = inputs.masked_fill(~rows.valid[..., None], 0)
        log_decay = log_decay.masked_fill(~rows.valid[..., None], 0)
    initial = torch.zeros_like(inputs[:, 0]) if state is None else state.to(compute)
    run = _step_by_step if exact else _Scan.apply
    h: Tensor = run(inputs, log_decay, rows.starts, initial, False)
    if causal:
        last = h[:, -1].clone()  # a copy, so that a kept state does not keep the whole sequence alive
        return h.to(x.dtype), last.to(torch.promote_types(x.dtype, torch.float32))
    # Before t is added there, the decay of t + 1 acts; what rolls round acts on the empty state only.
    ahead, starts = log_decay.roll(-1, 1), None if rows.starts is None else rows.starts.roll(-1, 1)
    later: Tensor = run(inputs, ahead, starts, initial, True)
    return (h + (later - inputs)).to(x.dtype), None


def _step_by_step(x: Tensor, log_decay: Tensor, starts: Tensor | None, initial: Tensor, reverse: bool) -> Tensor:
    """The definition."""
    decay = log_decay.exp()
    if starts is not None:
        decay = decay.masked_fill(starts[..., None], 0)
    h, states = initial, []
    for x_t, decay_t in _steps([x, decay], 1, reverse):
        h = decay_t * h + x_t
        states.append(h)
    return torch.stack(states[::-1] if reverse else states, 1)


def exponential(log_decay: Tensor) -> Tensor:
    """e to the power of real or complex numbers; of complex ones, torch's own `exp` takes five times as long."""
    return torch.polar(log_decay.real.exp(), log_decay.imag) if log_decay.is_complex() else log_decay.exp()


class _Scan(torch.autograd.Function):
    """h[t] = decay[t] h[t∓1] + x[t]; the adjoint runs the other way, with decays moved by one token."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_decay: Tensor, starts: Tensor | None, initial: Tensor, reverse: bool
    ) -> Tensor:
        decay = exponential(log_decay)
        if starts is not None:
            decay.masked_fill_(starts[..., None], 0)
        h = x.new_empty(x.shape)
        _two_level(x, decay, initial, h, reverse)
        report_flops("scan", 2 * h.numel())
        ctx.save_for_backward(h, decay, initial)
        ctx.reverse = reverse
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, Tensor, None]:
        h, decay, initial = ctx.saved_tensors
        first, last = (-1, 0) if ctx.reverse else (0, -1)
        after, before = (slice(1, None), slice(None, -1))[:: -1 if ctx.reverse else 1]
        # All of it in conjugates (g = conj(grad) + decay g'), so that no conjugate of the decays is needed.
        grad_x, grad_log_decay = grad.new_empty(grad.shape), torch.empty_like(h)
        if grad.is_complex():
            grad = torch.conj_physical(grad, out=grad_x)
        grad_x[:, last] = grad[:, last]
        _two_level(grad[:, before], decay[:, after], grad[:, last], grad_x[:, before], not ctx.reverse)
        report_flops("scan", 2 * h.numel())
        torch.mul(decay[:, after], h[:, before], out=grad_log_decay[:, after])
        torch.mul(decay[:, first], initial, out=grad_log_decay[:, first])
        grad_log_decay.mul_(grad_x).conj_physical_()
        grad_initial = grad_x[:, first] * decay[:, first]
        return grad_x.conj_physical_(), grad_log_decay, None, grad_initial.conj_physical_(), None


def _two_level(x: Tensor, decay: Tensor, carry: Tensor, h: Tensor, reverse: bool) -> None:
    """Write the recurrence over x and decay [B, T, E] from the state `carry` [B, E] into h [B, T, E]."""
    T = x.shape[1]
    size = max(1, round(math.sqrt(T)))
    whole = T - T % size
    chunks, rest = slice(0, whole), slice(whole, T)
    if reverse:
        chunks, rest = slice(T - whole, T), slice(0, T - whole)
    if whole:
        in_chunks = [t[:, chunks].unflatten(1, (-1, size)) for t in (x, decay, h)]
        carry = _all_chunks(_steps(in_chunks, 2, reverse), carry, reverse)
    for x_t, decay_t, h_t in _steps([t[:, rest] for t in (x, decay, h)], 1, reverse):
        carry = torch.addcmul(x_t, decay_t, carry, out=h_t)


def _all_chunks(steps: list[tuple[Tensor, ...]], carry: Tensor, reverse: bool) -> Tensor:
    """Both passes over the steps (x, decay, h), [B, chunks, E] each; returns the state after the last."""
    added, kept = torch.zeros_like(steps[0][0]), torch.ones_like(steps[0][1])
    for x_t, decay_t, _ in steps:
        torch.addcmul(x_t, decay_t, added, out=added)
        kept *= decay_t
    h = torch.empty_like(added)
    for initial, kept_c, added_c in _steps([h, kept, added], 1, reverse):
        initial.copy_(carry)
        carry = torch.addcmul(added_c, kept_c, carry)
    for x_t, decay_t, h_t in steps:
        h = torch.addcmul(x_t, decay_t, h, out=h_t)
    return carry


def _steps(tensors: list[Tensor], dim: int, reverse: bool) -> list[tuple[Tensor, ...]]:
    """The slices of all tensors along `dim`, in the order of the recurrence."""
    steps = list(zip(*(tensor.unbind(dim) for tensor in tensors), strict=True))
    return steps[::-1] if reverse else steps
