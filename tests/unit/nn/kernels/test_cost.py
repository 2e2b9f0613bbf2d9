"""The FLOP counter against counts by hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from paribus.nn.kernels.convolution import convolution
from paribus.nn.kernels.cost import FlopCounter, report_flops
from paribus.nn.segments import resolve


def test_linear_map() -> None:
    x, layer = torch.randn(5, 7, requires_grad=True), torch.nn.Linear(7, 3, bias=False)
    with FlopCounter() as counter:
        y = layer(x)
        assert counter.total == 2 * 5 * 7 * 3
        y.sum().backward()
    assert counter.total == 3 * 2 * 5 * 7 * 3


def test_attention_counts_the_whole_square() -> None:
    q, k, v = (torch.randn(2, 4, 32, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 4 * 32 * 32 * 8
    for causal in (True, False):
        with FlopCounter() as counter:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
            assert counter.total == 2 * product
            y.sum().backward()
        # The backward pass makes the scores again, then four products.
        assert counter.total == 7 * product


def test_triangular_solve() -> None:
    matrix = torch.eye(8).expand(3, 8, 8).clone().requires_grad_()
    right = torch.randn(3, 8, 5, requires_grad=True)
    with FlopCounter() as counter:
        y = torch.linalg.solve_triangular(matrix, right, upper=False, unitriangular=True)
        assert counter.total == 3 * 8**2 * 5
        y.sum().backward()
    # One more solve for the right-hand side, one product for the matrix.
    assert counter.total == 2 * 3 * 8**2 * 5 + 2 * 3 * 8 * 8 * 5


def test_transforms() -> None:
    real = torch.randn(3, 64, 5)
    with FlopCounter() as counter:
        spectrum = torch.fft.rfft(real, dim=1)
        assert counter.total == 2.5 * 64 * math.log2(64) * 15
        torch.fft.irfft(spectrum, 64, dim=1)
        assert counter.total == 5 * 64 * math.log2(64) * 15
        torch.fft.fft2(real.to(torch.complex64), dim=(0, 1))
    assert counter.total == round(5 * 64 * 6 * 15 + 5 * 192 * math.log2(192) * 5)


def test_convolution() -> None:
    R, n, E, m = 2, 32, 3, 64
    x = torch.randn(R, n, E, requires_grad=True)
    weight = torch.randn(n, E, requires_grad=True)
    transform, product = 2.5 * m * math.log2(m), 6 * (m // 2 + 1)
    with FlopCounter() as counter:
        y, _ = convolution(x, lambda n: weight[:n], rows=resolve(x, None, None), state=None, causal=True)
        # Tokens there and back, taps there.
        assert counter.total == (2 * R + 1) * E * transform + R * E * product
        forward = counter.total
        y.sum().backward()
    # The gradient there, back for tokens and for taps.
    assert counter.total - forward == (2 * R + 1) * E * transform + 2 * R * E * product


def test_reports_reach_every_active_counter_and_only_those() -> None:
    report_flops("before", 1)
    with FlopCounter() as outer:
        report_flops("scan", 2)
        with FlopCounter() as inner:
            report_flops("scan", 3)
            torch.ones(2, 2) @ torch.ones(2, 2)
        report_flops("other", 5)
    report_flops("after", 7)
    assert inner.total == 3 + 16
    assert outer.total == 2 + 3 + 5 + 16
    assert outer.by_name == {"aten.mm": 16, "scan": 5, "other": 5}


def test_a_counter_closes_after_an_error() -> None:
    try:
        with FlopCounter() as counter:
            raise KeyError
    except KeyError:
        report_flops("late", 9)
    assert counter.total == 0
