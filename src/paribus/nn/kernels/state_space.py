"""The elementwise recurrence with N states for each channel, read out at once: Mamba and diagonal state spaces.

    h[t, n] = exp(step[t] rate[n]) h[t-1, n] + write[t, n] x[t]        y[t] = Re Σ_n read[t, n] h[t, n]

The states of all tokens would be N times as large as x. Only those between chunks are kept; the backward pass computes
the others again, from the last chunk to the first. Inside a chunk one token follows the other, all N E numbers of it at
once, which is as parallel as a processor can use. Decays are only ever multiplied, so that strong ones are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..segments import Rows
from ..settings import nearest
from .chunks import full_precision
from .cost import report_flops

CHUNK = 32
"""Tokens in a chunk."""
GROUP = 16384
"""Rows of a batch run together as long as one token's states are not more numbers than this."""
ALGORITHMS = ("chunked", "reference")


def state_space_scan(
    x: Tensor,
    step: Tensor | None,
    rate: Tensor,
    write: Tensor | None,
    read: Tensor,
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    algorithm: str = "chunked",
) -> tuple[Tensor, Tensor | None]:
    """h[t, n] = exp(step[t] rate[n]) h[t-1, n] + write[t, n] x[t]; y[t] = Re Σ_n read[t, n] h[t, n].

    Two-directional: y plus what the same recurrence, run from the end, gives without the token itself; there the
    decay of t + 1 acts between t + 1 and t.

    Args:
        x: [B, T, E].
        step: [B, T, E], not negative; None is 1 for all tokens.
        rate: [N, E], real part at most 0; if complex, so are h and `read`.
        write: [B, T, N]; None is 1 for all tokens.
        read: [B, T, N] with `write`, else [N, E].
        rows: segments and padding of the tokens.
        state: [B, N, E], h before the first token; None is no past.
        causal: one direction, from the past.
        algorithm: "chunked", or "reference", step by step in float64.

    Returns:
        y [B, T, E], unspecified at padding, and the last state [B, N, E] (None unless causal).

    Raises:
        ValueError: unknown algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm '{algorithm}'; {nearest(algorithm, ALGORITHMS)}")
    exact = algorithm == "reference"
    accumulator = torch.promote_types(x.dtype, torch.float32)
    real = torch.float64 if exact else accumulator
    kept, wide = (torch.promote_types(t, torch.complex64) if rate.is_complex() else t for t in (accumulator, real))
    inputs = _Inputs(
        _without_padding(x.to(real), rows),
        None if step is None else _without_padding(step.to(real), rows),
        rate.to(wide),
        None if write is None else write.to(wide),
        read.to(wide),
        rows.valid,
        rows.starts,
    )
    initial = inputs.rate.new_zeros(x.shape[0], *rate.shape) if state is None else state.to(wide)
    run: Callable[..., tuple[Tensor, Tensor]] = _step_by_step if exact else _Chunked.apply
    with full_precision(x):
        y, last = run(initial, *inputs)
        if causal:
            return y.to(x.dtype), last.to(kept)
        later, _ = run(initial, *inputs.reversed())
        return (y + (later.flip(1) - inputs.itself())).to(x.dtype), None


def sum_of_exponentials(rate: Tensor, read: Tensor, length: int) -> Tensor:
    """Re Σ_n read[n] exp(t rate[n]) for t = 0 … length - 1: the same recurrence as weights of a convolution.

    With t = i + j I, the powers of i and of j are few, and their products are matrix products.

    Args:
        rate: [N, E], complex, real part at most 0.
        read: [N, E], complex.

    Returns:
        [length, E].
    """
    near = max(1, math.isqrt(length))
    steps = torch.arange(max(near, -(-length // near)), dtype=rate.real.dtype, device=rate.device)[:, None, None]
    first = read * _exponential(steps[:near], rate)  # I N E
    second = _exponential(near * steps[: -(-length // near)], rate)  # J N E
    with full_precision(rate):
        sums = torch.einsum(
            "ine,jne->jie",
            torch.cat([first.real, -first.imag], 1),
            torch.cat([second.real, second.imag], 1),
        )
    return sums.flatten(0, 1)[:length]


def _without_padding(x: Tensor, rows: Rows) -> Tensor:
    return x if rows.valid is None else x.masked_fill(~rows.valid[..., None], 0)


def _chunks(x: Tensor | None, rows: slice, count: int) -> Sequence[Any]:
    return (None,) * count if x is None else x[rows].split(CHUNK, 1)


class _Inputs(NamedTuple):
    """What `state_space_scan` takes; x and step are zero at padding."""

    x: Tensor
    step: Tensor | None
    rate: Tensor
    write: Tensor | None
    read: Tensor
    valid: Tensor | None
    starts: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> _Inputs:
        """With `function` applied to whatever has tokens."""
        x, step, write, valid, starts = (
            None if t is None else function(t) for t in (self.x, self.step, self.write, self.valid, self.starts)
        )
        assert x is not None
        read = self.read if self.write is None else function(self.read)
        return _Inputs(x, step, self.rate, write, read, valid, starts)

    def groups(self) -> list[slice]:
        """The rows that run together."""
        size = max(1, GROUP // self.rate.numel())
        return [slice(start, start + size) for start in range(0, self.x.shape[0], size)]

    def chunks(self, rows: slice) -> list[_Inputs]:
        """These rows chunk by chunk."""
        count = -(-self.x.shape[1] // CHUNK)
        x, step, write, valid, starts = (
            _chunks(t, rows, count) for t in (self.x, self.step, self.write, self.valid, self.starts)
        )
        read = [self.read] * count if self.write is None else _chunks(self.read, rows, count)
        return [_Inputs(*part) for part in zip(x, step, [self.rate] * count, write, read, valid, starts, strict=True)]

    def reversed(self) -> _Inputs:
        """The same tokens read from the end: before t is written there, the decay of t + 1 acts.

        What rolls round acts on the empty state only.
        """
        step, valid, starts = (None if t is None else t.roll(-1, 1) for t in (self.step, self.valid, self.starts))
        moved = self._replace(step=step, valid=valid, starts=starts)
        return moved.map(lambda t: t.flip(1))

    def itself(self) -> Tensor:
        """[B, T, E]: what each token reads of itself."""
        weight = self.read.sum(0) if self.write is None else (self.read * self.write).sum(-1, keepdim=True)
        return weight.real * self.x

    def decays(self, out: Tensor) -> None:
        """Write into `out` [B, T, N, E] what is kept of each state just before each token is written."""
        if self.step is not None:
            _exponential(self.step[:, :, None], self.rate, out)
        else:
            out.copy_(_exponential(self.x.new_ones(()), self.rate))
            if self.valid is not None:
                out.masked_fill_(~self.valid[..., None, None], 1)
        if self.starts is not None:
            out.masked_fill_(self.starts[..., None, None], 0)

    def states(self, h: _Numbers, decays: _Numbers, before: Tensor) -> None:
        """Write h and the decays after the states `before` [B, N, E] the first token."""
        self.decays(decays.all)
        if self.write is None:
            h.all.copy_(self.x[:, :, None])
        else:
            torch.mul(self.write[..., None], self.x[:, :, None], out=h.all)
        _run(h.tokens, decays.tokens, before)

    def read_out(self, h: Tensor) -> Tensor:
        """y [B, T, E]."""
        if self.write is None:
            return (self.read * h).sum(2).real
        return _weighted_sum(self.read, h).real

    def weight_gradient(self, x: Tensor, h: Tensor) -> Tensor:
        """Of weights that join x [B, T, E] and h [B, T, N, E]: [B, T, N], or [N, E] for all tokens."""
        if self.write is None:
            return (x[:, :, None] * h).sum((0, 1))
        return _weighted_sum(x.to(h.dtype), h.mT)


def _step_by_step(initial: Tensor, *tensors: Any) -> tuple[Tensor, Tensor]:
    """The definition."""
    x, step, rate, write, read, valid, starts = tensors
    h, outputs = initial, []
    for t in range(x.shape[1]):
        decay = torch.exp(rate if step is None else step[:, t, None] * rate).expand_as(h)
        if valid is not None:
            decay = torch.where(valid[:, t, None, None], decay, 1)
        if starts is not None:
            decay = torch.where(starts[:, t, None, None], 0, decay)
        h = decay * h + (x[:, t, None] if write is None else write[:, t, :, None] * x[:, t, None])
        outputs.append(((read if write is None else read[:, t, :, None]) * h).sum(1).real)
    return torch.stack(outputs, 1), h


class _Numbers(NamedTuple):
    """Memory for the states of a chunk, used again by each: making views of its tokens costs as much as adding them."""

    all: Tensor
    """[B, T, N, E]."""
    tokens: tuple[Tensor, ...]
    """[B, N, E] each."""


class _Memory:
    """Several `_Numbers` for any part of the inputs."""

    def __init__(self, inputs: _Inputs, count: int) -> None:
        B, T = inputs.x[inputs.groups()[0]].shape[:2]
        self.flat = [inputs.rate.new_empty(B * min(T, CHUNK) * inputs.rate.numel()) for _ in range(count)]
        self.made: dict[tuple[int, ...], list[_Numbers]] = {}

    def __call__(self, part: _Inputs) -> list[_Numbers]:
        shape = (*part.x.shape[:2], *part.rate.shape)
        if shape not in self.made:
            views = [flat[: math.prod(shape)].view(shape) for flat in self.flat]
            self.made[shape] = [_Numbers(view, view.unbind(1)) for view in views]
        return self.made[shape]


class _Chunked(torch.autograd.Function):
    """Chunk after chunk; only the states before each are kept.

    The backward pass works in conjugates, so that nothing inside it is conjugated: with g the conjugate of the gradient
    of h, g[t] = read[t] dy[t] + decay[t+1] g[t+1].
    """

    @staticmethod
    def forward(ctx: Any, initial: Tensor, *tensors: Any) -> tuple[Tensor, Tensor]:
        inputs = _Inputs(*tensors)
        y, last = torch.empty_like(inputs.x), torch.empty_like(initial)
        memory = _Memory(inputs, 2)
        borders = []
        for rows in inputs.groups():
            state = initial[rows]
            for part, y_part in zip(inputs.chunks(rows), y[rows].split(CHUNK, 1), strict=True):
                borders.append(state)
                h, decays = memory(part)
                part.states(h, decays, state)
                y_part.copy_(part.read_out(h.all))
                state = h.tokens[-1].clone()
            last[rows] = state
        report_flops("state_space_scan", 2 * inputs.x.numel() * inputs.rate.shape[0])
        ctx.save_for_backward(*inputs, *borders)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        saved = list(ctx.saved_tensors)  # asked once: checkpointing computes them again at each question
        inputs, borders = _Inputs(*saved[:7]), saved[7:]
        zeros: list[Any] = [None if t is None else torch.zeros_like(t) for t in inputs[:5]]
        whole = _Gradients(*zeros)
        d_initial = torch.empty_like(d_last)
        memory = _Memory(inputs, 3)
        with full_precision(d_y):
            for rows in reversed(inputs.groups()):
                g = d_last[rows].conj_physical()
                parts = zip(inputs.chunks(rows), whole.chunks(rows), d_y[rows].split(CHUNK, 1), strict=True)
                for part, gradients, d_y_part in reversed(list(parts)):
                    g = gradients.add(part, d_y_part, borders.pop(), g, memory(part))
                d_initial[rows] = g
        report_flops("state_space_scan", 4 * inputs.x.numel() * inputs.rate.shape[0])
        return *(None if g is None else g.conj_physical() for g in (d_initial, *whole)), None, None


class _Gradients(NamedTuple):
    """Conjugates of the gradients, zero at first."""

    x: Tensor
    step: Tensor | None
    rate: Tensor
    write: Tensor | None
    read: Tensor

    def chunks(self, rows: slice) -> list[_Gradients]:
        """Views of these rows, chunk by chunk; what has no tokens is the same for all."""
        count = -(-self.x.shape[1] // CHUNK)
        x, step, write = (_chunks(t, rows, count) for t in (self.x, self.step, self.write))
        read = [self.read] * count if self.write is None else _chunks(self.read, rows, count)
        return [_Gradients(*part) for part in zip(x, step, [self.rate] * count, write, read, strict=True)]

    def add(self, part: _Inputs, d_y: Tensor, before: Tensor, after: Tensor, memory: list[_Numbers]) -> Tensor:
        """Add what a part gives, with states `before` it and their gradient `after` it; returns that before it."""
        h, decays, g = memory
        part.states(h, decays, before)
        torch.mul(part.read if part.write is None else part.read[..., None], d_y[:, :, None], out=g.all)
        g.tokens[-1].add_(after)
        _run(g.tokens[-2::-1], decays.tokens[:0:-1], g.tokens[-1])
        after = decays.tokens[0] * g.tokens[0]
        self.read.add_(part.weight_gradient(d_y, h.all))
        if self.write is None or part.write is None:
            self.x.add_(g.all.sum(2).real)
        else:
            self.x.add_(_weighted_sum(part.write, g.all).real)
            self.write.add_(part.weight_gradient(part.x, g.all))
        decays.tokens[0].mul_(before)
        decays.all[:, 1:].mul_(h.all[:, :-1])
        self._add_decays(part, decays.all.mul_(g.all), h.all)
        return after

    def _add_decays(self, part: _Inputs, d_log: Tensor, products: Tensor) -> None:
        """Of step and rate, from that of the logarithms of the decays; both tensors are used up."""
        if self.step is None or part.step is None:
            if part.valid is not None:
                d_log.masked_fill_(~part.valid[..., None, None], 0)
        else:
            self.step.add_(torch.mul(d_log, part.rate, out=products).sum(2).real)
            d_log.mul_(part.step[:, :, None])
        self.rate.add_(d_log.sum((0, 1)))


_LOG2_E = math.log2(math.e)


def _exponential(step: Tensor, rate: Tensor, out: Tensor | None = None) -> Tensor:
    """exp(step · rate), as a power of two, which takes half the time; torch's for complex numbers takes far longer."""
    if rate.is_complex():
        return torch.polar((step * (rate.real * _LOG2_E)).exp2_(), step * rate.imag, out=out)
    return torch.mul(step, rate * _LOG2_E, out=out).exp2_()


def _weighted_sum(weights: Tensor, x: Tensor) -> Tensor:
    """Σ_n weights[..., n] x[..., n, :] for weights [B, T, N] and x [B, T, N, E]."""
    sums = torch.bmm(weights.flatten(0, 1)[:, None], x.flatten(0, 1))
    return sums.view(*x.shape[:2], x.shape[3])


def _run(steps: Sequence[Tensor], decays: Sequence[Tensor], carry: Tensor) -> None:
    """steps[t] += decays[t] steps[t-1], in place, from `carry`."""
    for h_t, decay_t in zip(steps, decays, strict=True):
        carry = torch.addcmul(h_t, decay_t, carry, out=h_t)
