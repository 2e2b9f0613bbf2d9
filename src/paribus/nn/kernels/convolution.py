"""Convolutions over tokens: short ones by shifted products, long ones by FFT; each channel by itself.

Short, W taps: y[t] = sum_j weight[:, j] x[t - before + j], with before = W - 1 when causal (weight[:, -1] is
the current token's) and W // 2 otherwise, so that (W - 1) // 2 taps reach forward.
Long: y[t] = sum_s w[t - s] x[s], over the past and the present, or over the whole segment when two-sided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..segments import Rows
from .alignment import align, each_segment
from .cost import report_flops


def convolution(
    x: Tensor,
    taps: Callable[[int], Tensor],
    *,
    rows: Rows,
    state: Tensor | None,
    causal: bool,
    algorithm: str = "fft",
) -> tuple[Tensor, Tensor | None]:
    """Convolve each channel with taps as long as its segment.

    Args:
        x: [B, T, E].
        taps: gives, for n tokens, the weights [n, E] of lags 0 to n - 1 (causal), or [2n - 1, E] of lags
            -(n - 1) to n - 1; the weight of a lag must not depend on n.
        rows: segments and padding of the tokens.
        state: [B, S, E], the inputs of the current segment so far (`alignment`); None is no past.
        causal: read the past and the present only.
        algorithm: "fft", or "reference", step by step in float64.

    Returns:
        y [B, T, E], zero at padding, and the state after `x` (None unless causal).
    """
    if algorithm == "reference":

        def direct(inputs: Tensor) -> Tensor:
            return _direct(inputs, taps(len(inputs)).double(), causal)

        y, history = each_segment(x.double(), rows, state, direct)
        return y.to(x.dtype), history.to(x.dtype) if causal else None
    compute = torch.promote_types(x.dtype, torch.float32)
    aligned = align(x, rows, state)
    tokens, n = aligned.tokens.to(compute), aligned.tokens.shape[1]
    weight = taps(n).to(compute)
    if rows.plain and state is not None and x.shape[1] == 1:
        # Decoding: one dot product with the history; what lies ahead of the new token is zero.
        lags = (rows.positions - torch.arange(n, device=x.device)).clamp(min=0)
        y = (weight[lags] * tokens).sum(1, keepdim=True)
    else:
        y = aligned.pack(_by_fft(tokens, weight, causal))
    return y.to(x.dtype), aligned.history if causal else None


def _direct(inputs: Tensor, weight: Tensor, causal: bool) -> Tensor:
    """The definition, one output after another: inputs [n, E], weight [n, E] or [2n - 1, E]."""
    n, steps = len(inputs), []
    for t in range(n):
        lags = t - torch.arange(t + 1 if causal else n, device=inputs.device)
        used = weight[lags if causal else lags + n - 1]
        steps.append((used * inputs[: len(lags)]).sum(0))
    return torch.stack(steps)


def _by_fft(x: Tensor, weight: Tensor, causal: bool) -> Tensor:
    """x [R, n, E] convolved with weight [n, E] or [2n - 1, E], through a circle that is long enough."""
    n = x.shape[1]
    length = _fft_length(2 * n)
    if not causal:
        # On the circle, negative lags lie at the end.
        weight = torch.cat([F.pad(weight[n - 1 :], (0, 0, 0, length - 2 * n + 1)), weight[: n - 1]])
    y: Tensor = _Circular.apply(x, weight, length)
    return y


def _fft_length(least: int) -> int:
    """The first length that is not shorter than `least` and has only factors 2, 3 and 5, mostly 2."""
    power = max(8, 1 << (least - 1).bit_length() - 1)
    return min(size for size in (power * eighths // 8 for eighths in (8, 9, 10, 12, 16)) if size >= least)


class _Circular(torch.autograd.Function):
    """Circular convolution of x [R, n, E] with weight [k, E] on `length` points.

    Its own backward pass keeps to real transforms; torch's takes a complex one for each real one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, length: int) -> Tensor:
        spectrum = torch.fft.rfft(x, length, dim=1)
        response = torch.fft.rfft(weight, length, dim=0)
        ctx.save_for_backward(spectrum, response)
        ctx.lengths = (x.shape[1], weight.shape[0], length)
        report_flops("convolution", 6 * spectrum.numel())
        return torch.fft.irfft(spectrum * response, length, dim=1)[:, : x.shape[1]].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        spectrum, response = ctx.saved_tensors
        n, k, length = ctx.lengths
        grad_spectrum = torch.fft.rfft(grad, length, dim=1)
        grad_x = torch.fft.irfft(grad_spectrum * response.conj(), length, dim=1)[:, :n].contiguous()
        # Σ_r G[r] conj(X[r]), without a copy as large as the spectra.
        correlation = torch.zeros_like(response)
        for row, grad_row in zip(spectrum, grad_spectrum.conj_physical_(), strict=True):
            correlation.addcmul_(row, grad_row)
        report_flops("convolution", 12 * spectrum.numel())
        grad_weight = torch.fft.irfft(correlation.conj_physical_(), length, dim=0)[:k].contiguous()
        return grad_x, grad_weight, None


def short_convolution(
    x: Tensor, weight: Tensor, *, rows: Rows, state: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor | None]:
    """Convolve each channel with its own few taps; taps skip padding and never cross a segment.

    Args:
        x: [B, T, E].
        weight: [E, W]; causal: the last one multiplies the current token. Otherwise tap j reads j - W // 2
            tokens ahead: W // 2 before, (W - 1) // 2 after.
        rows: segments and padding of the tokens.
        state: [B, W - 1, E], the last tokens of the current segment, zero where there were fewer; None is
            no past.
        causal: read the past only.

    Returns:
        y [B, T, E], zero at padding, and the state after `x` (None unless causal).
    """
    T, W = x.shape[1], weight.shape[1]
    compute = torch.promote_types(x.dtype, torch.float32)
    taps = weight.to(compute).unbind(1)
    before = W - 1 if causal else W // 2
    tokens, order = (x, None) if rows.valid is None else _to_front(x, rows.valid)
    lead = x.new_zeros(x.shape[0], before, x.shape[2]) if state is None else state
    padded = F.pad(torch.cat([lead, tokens], 1), (0, 0, 0, W - 1 - before))
    if order is None:
        y = padded[:, :T] * taps[0]
        for j in range(1, W):
            y = torch.addcmul(y, padded[:, j : j + T].to(compute), taps[j])
        # A copy, so that a kept state does not keep the whole sequence alive.
        return y.to(x.dtype), padded[:, T:].clone() if causal else None
    ids = F.pad(rows.ids.gather(1, order), (before, W - 1 - before))
    if rows.past is not None:
        ids[:, :before] = rows.past.segment[:, None]
    own = ids[:, before : before + T]
    y = torch.zeros_like(tokens, dtype=compute)
    for j in range(W):
        tap = padded[:, j : j + T].masked_fill((ids[:, j : j + T] != own)[..., None], 0)
        y = torch.addcmul(y, tap.to(compute), taps[j])
    back = order.argsort(1)[..., None].expand_as(y)
    return y.gather(1, back).to(x.dtype), _last(padded, ids, rows, W - 1) if causal else None


def _to_front(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The real tokens of each row at its front, zeros behind them, and where they came from [B, T]."""
    order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
    x = x.masked_fill(~valid[..., None], 0)
    return x.gather(1, order[..., None].expand_as(x)), order


def _last(padded: Tensor, ids: Tensor, rows: Rows, count: int) -> Tensor:
    """[B, count, E]: the last tokens of the current segment, before the padding at the end of each row."""
    assert rows.valid is not None
    places = rows.valid.sum(1, keepdim=True) + torch.arange(count, device=ids.device)
    foreign = ids.gather(1, places) != rows.after().segment[:, None]
    tokens = padded.gather(1, places[..., None].expand(-1, -1, padded.shape[2]))
    return tokens.masked_fill(foreign[..., None], 0)
