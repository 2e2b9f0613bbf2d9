"""The loss of a large vocabulary equals torch's, in value, gradients and far less memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from paribus.nn import loss as module
from paribus.nn.loss import IGNORE, linear_cross_entropy

TOKENS, WIDTH, VOCABULARY = 37, 8, 50


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, WIDTH, generator=draw, dtype=torch.float64) for n in (TOKENS, VOCABULARY))
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=draw)
    targets[[0, 5, 6, 36]] = IGNORE
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


@pytest.fixture(params=[1, 3 * VOCABULARY, 1 << 22], ids=["token", "three", "all"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one token, of three, and all in one."""
    monkeypatch.setattr(module, "_CHUNK_LOGITS", request.param)


@pytest.mark.usefixtures("chunk")
def test_equals_torch_in_value_and_gradients() -> None:
    hidden, weight, targets = inputs()
    ours, _ = linear_cross_entropy(hidden, weight, targets)
    theirs = functional.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for got, expected in zip(
        torch.autograd.grad(3 * ours, (hidden, weight)), torch.autograd.grad(3 * theirs, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, weight, targets = inputs()
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets)[0], (hidden, weight))


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_the_gradients_asked_for(wanted: tuple[bool, bool]) -> None:
    hidden, weight, targets = inputs()
    expected, _ = linear_cross_entropy(hidden, weight, targets)
    expected.backward()
    some = [t.detach().clone().requires_grad_(w) for t, w in zip((hidden, weight), wanted, strict=True)]
    value, _ = linear_cross_entropy(*some, targets)
    assert torch.equal(value, expected)
    assert value.requires_grad == any(wanted)
    if any(wanted):
        value.backward()
    for got, one, full in zip(wanted, some, (hidden, weight), strict=True):
        assert (one.grad is not None) == got
        assert not got or torch.equal(one.grad, full.grad)


def test_no_target_at_all_is_no_loss() -> None:
    hidden, weight, targets = inputs()
    value, _ = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORE))
    value.backward()
    assert value == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize("automatic", [False, True], ids=["bfloat16", "autocast"])
def test_half_precision_stays_close(automatic: bool) -> None:
    hidden, weight, targets = inputs()
    exact = functional.cross_entropy(hidden @ weight.T, targets)
    exact.backward()
    half, matrix, _ = inputs(torch.bfloat16)
    if automatic:
        matrix = inputs(torch.float32)[1]
    with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
        value, _ = linear_cross_entropy(half, matrix, targets)
    value.backward()
    assert value.dtype == torch.float32
    assert (half.grad.dtype, matrix.grad.dtype) == (half.dtype, matrix.dtype)
    torch.testing.assert_close(value.double(), exact, rtol=0.02, atol=0)
    for got, expected in ((half.grad, hidden.grad), (matrix.grad, weight.grad)):
        assert (got.double() - expected).norm() < 0.02 * expected.norm()


def test_shares_of_a_mean_over_many_tokens_survive_float16() -> None:
    """The smallest number of float16 is 6e-8; a word that nothing suggests has 1 / (4,096 · 8,192) of the gradient."""
    hidden, weight = torch.randn(4096, 8, requires_grad=True), torch.randn(8192, 8, requires_grad=True)
    targets = torch.randint(64, (4096,))
    expected = torch.autograd.grad(functional.cross_entropy(hidden @ weight.T, targets), [hidden, weight])
    with torch.autocast("cpu", torch.float16):
        value, _ = linear_cross_entropy(hidden, weight, targets)
    found = torch.autograd.grad(2.0**10 * value, [hidden, weight])
    for got, wanted in zip(found, expected, strict=True):
        assert (got / 2.0**10 - wanted).norm() < 1e-3 * wanted.norm()
    never, lost = found[1][64:] / 2.0**10, expected[1][64:]  # words that are no target: shares only
    assert (never - lost).norm() < 3e-3 * lost.norm()


def test_confident_logits_stay_finite() -> None:
    hidden, weight, targets = inputs(torch.float32)
    value, _ = linear_cross_entropy(1e4 * hidden, weight, targets)
    value.backward()
    assert value.isfinite()
    assert hidden.grad.isfinite().all()


MEASURE = """
import resource, sys, torch
from paribus.nn.loss import linear_cross_entropy
torch.set_num_threads(1)
unit = 1 if sys.platform == 'darwin' else 1024  # of ru_maxrss, in bytes
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
hidden = torch.randn(2048, 16, requires_grad=True)
weight = torch.randn(32_000, 16, requires_grad=True)
targets = torch.zeros(2048, dtype=torch.long)
linear_cross_entropy(hidden[:8], weight, targets[:8])[0].backward()
before = peak()
linear_cross_entropy(hidden, weight, targets)[0].backward()
print(peak() - before)
"""


def test_memory_is_far_below_the_logits() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    logits = 2048 * 32_000 * 4
    assert int(done.stdout) < logits / 3, f"{int(done.stdout) / 2**20:.0f} MiB; all logits: {logits / 2**20:.0f} MiB"
