"""Convolutions over tokens: short ones by shifted products, of channels or of matrices; long ones by FFT.

Short, W taps: y[t] = sum_j weight[:, j] x[t - before + j], with before = W - 1 when causal (weight[:, -1] is
the current token's) and W // 2 otherwise, so that (W - 1) // 2 taps reach forward. Dense: weight[:, j] is a matrix.
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
from .spacing import space

_CACHED = 2**18
"""How many numbers of one tensor stay in a processor's cache while all taps of a short convolution pass over them."""


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

    "fft" is causal up to its rounding: an output feels what lies ahead of it by about 1e-7 of that part's own
    outputs in float32. Adding lag after lag would be exact, and from 64 tokens on takes several times as long.
    Decoding reads the whole history for each token.

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
    before, after = _reach(weight.shape[1], causal)
    compute = torch.promote_types(x.dtype, torch.float32)
    taps = weight.to(compute).T
    if rows.plain and state is not None and x.shape[1] == 1:
        window = torch.cat([state.to(x.dtype), x], 1)  # decoding: one product with what the taps see
        return (window * taps).sum(1, keepdim=True).to(x.dtype), window[:, 1:]
    taps = taps.contiguous()
    if rows.plain and state is None:
        y: Tensor = _Depthwise.apply(x.to(compute), taps, before)
        kept = x[:, max(0, x.shape[1] - before) :]
        return y.to(x.dtype), F.pad(kept, (0, 0, before - kept.shape[1], 0)) if causal else None
    spaced = space(x, rows, state, before, after)
    y = _Depthwise.apply(spaced.tokens.to(compute), taps, before)
    return spaced.pick(y).to(x.dtype), spaced.last() if causal else None


def dense_convolution(
    x: Tensor, weight: Tensor, *, rows: Rows, state: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor | None]:
    """Convolve with few taps that are matrices; like a linear map, it computes in the dtype of `x`, or autocast's.

    Args:
        x: [B, T, E].
        weight: [F, W, E]; which tap reads what is as in `short_convolution`.
        rows: segments and padding of the tokens.
        state: [B, W - 1, E], the last tokens of the current segment, zero where there were fewer; None is
            no past.
        causal: read the past only.

    Returns:
        y [B, T, F], zero at padding, and the state after `x` (None unless causal).
    """
    before, after = _reach(weight.shape[1], causal)
    if rows.plain and state is not None and x.shape[1] == 1:
        window = torch.cat([state.to(x.dtype), x], 1)  # decoding: one product with what the taps see
        return F.linear(window.flatten(1), weight.flatten(1))[:, None], window[:, 1:]
    kind = x.device.type
    automatic = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    compute = torch.get_autocast_dtype(kind) if automatic else x.dtype
    spaced = space(x, rows, state, before, after)
    B, L, E = spaced.tokens.shape
    y: Tensor = _Dense.apply(spaced.tokens.reshape(B * L, E).to(compute), weight.to(compute), before)
    return spaced.pick(y.view(B, L, len(weight))), spaced.last() if causal else None


def _reach(width: int, causal: bool) -> tuple[int, int]:
    """How many tokens back and ahead `width` taps read."""
    before = width - 1 if causal else width // 2
    return before, width - 1 - before


class _Depthwise(torch.autograd.Function):
    """y[t] = Σ_j taps[j] ⊙ x[t + j - before] over x [B, T, E], zero outside of it; taps [W, E]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, before: int) -> Tensor:
        ctx.save_for_backward(x, taps)
        ctx.before = before
        return _shifted_sum(x, taps, [j - before for j in range(len(taps))])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = outputs
        x, taps = ctx.saved_tensors
        offsets = [j - ctx.before for j in range(len(taps))]
        return _shifted_sum(grad, taps, [-offset for offset in offsets]), _correlation(x, grad, offsets), None


def _shifted_sum(x: Tensor, taps: Tensor, offsets: list[int]) -> Tensor:
    """Σ_j taps[j] ⊙ x[t + offsets[j]]; one of the offsets is 0."""
    y = torch.empty_like(x)
    whole = offsets.index(0)
    for start, end in _blocks(x):
        torch.mul(x[:, start:end], taps[whole], out=y[:, start:end])
        for tap, offset in zip(taps.unbind(), offsets, strict=True):
            first, last = max(start, -offset), min(end, x.shape[1] - offset)
            if offset and first < last:
                y[:, first:last].addcmul_(x[:, first + offset : last + offset], tap)
    return y


def _correlation(x: Tensor, grad: Tensor, offsets: list[int]) -> Tensor:
    """Σ_t x[t + offset] ⊙ grad[t], for each offset."""
    total = x.new_zeros(len(offsets), x.shape[2])
    room: Tensor | None = None
    for start, end in _blocks(x):
        room = torch.empty_like(x[:, start:end]) if room is None else room
        for row, offset in zip(total.unbind(), offsets, strict=True):
            first, last = max(start, -offset), min(end, x.shape[1] - offset)
            if first < last:
                products = room[:, : last - first]
                torch.mul(x[:, first + offset : last + offset], grad[:, first:last], out=products)
                row += products.sum((0, 1))
    return total


def _blocks(x: Tensor) -> list[tuple[int, int]]:
    """Spans of tokens for all taps at once, as large as the cache allows; one span on other devices."""
    B, T, E = x.shape
    size = max(1, _CACHED // (B * E)) if x.device.type == "cpu" else T
    return [(start, min(start + size, T)) for start in range(0, T, size)]


class _Dense(torch.autograd.Function):
    """y[i] = Σ_j weight[:, j] x[i + j - before] over x [N, E], zero where a tap would read outside of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, before: int) -> Tensor:
        N, (F, W, _) = len(x), weight.shape
        y = x.new_zeros(N, F, dtype=torch.promote_types(x.dtype, torch.float32))
        n = N - W + 1
        for j in range(W):
            _add_product(y[before : before + n], x[j : j + n], weight[:, j].T)
        ctx.save_for_backward(x, weight)
        ctx.before = before
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        n = len(x) - weight.shape[1] + 1
        grad = outputs[0][ctx.before : ctx.before + n]
        grad_x = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        grad_weight = torch.empty_like(weight)
        for j in range(weight.shape[1]):
            _add_product(grad_x[j : j + n], grad, weight[:, j])
            grad_weight[:, j] = grad.T @ x[j : j + n]
        return grad_x.to(x.dtype), grad_weight, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, in place."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, out=total)
    else:
        total += a @ b
