"""Kernels, forward and backward, beside torch's softmax attention (SDPA) and their own step-by-step reference.

All run in one process on the same batch of tokens, 4 heads of 64 channels, in interleaved rounds; a ratio above one
says that the kernel is faster. The reference steps through the tokens in float64 and is timed up to --reference-length.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paribus.nn.segments import resolve

from .record import append_rows, machine
from .training_speed import interleaved

HEADS, WIDTH = 4, 64
Forward = Callable[..., Tensor]
Case = tuple[Forward, list[Tensor]]
"""forward(algorithm=...) of a kernel, algorithm left out for its fast form, and its inputs."""


def _kernel(name: str, file: str = "") -> Callable[..., tuple[Tensor, Any]]:
    return getattr(import_module(f"paribus.nn.kernels.{file or name}"), name)


def _heads(B: int, T: int, count: int) -> list[Tensor]:
    return [torch.randn(B, T, HEADS, WIDTH, requires_grad=True) for _ in range(count)]


def _log_decay(*shape: int) -> Tensor:
    return (-torch.rand(shape)).requires_grad_()


def _decay(kind: str, B: int, T: int) -> list[Tensor | None]:
    if kind == "none":
        return [None]
    shapes = {"constant": (HEADS,), "scalar": (B, T, HEADS), "channel": (B, T, HEADS, WIDTH)}
    return [_log_decay(*shapes[kind])]


def _case(kernel: Callable[..., tuple[Tensor, Any]], inputs: list[Any]) -> Case:
    rows = resolve(inputs[0], None, None)

    def forward(**algorithm: str) -> Tensor:
        return kernel(*inputs, rows=rows, state=None, causal=True, **algorithm)[0]

    return forward, [x for x in inputs if isinstance(x, Tensor)]


def attention(B: int, T: int) -> Case:
    """Softmax attention as the mixers call it."""
    return _case(partial(_kernel("attention"), scale=WIDTH**-0.5), _heads(B, T, 3))


def recurrence(kind: str, B: int, T: int) -> Case:
    """Gated linear recurrence with one kind of decay."""
    return _case(_kernel("recurrence"), [*_heads(B, T, 3), *_decay(kind, B, T)])


def delta(kind: str, B: int, T: int) -> Case:
    """Gated delta rule with one kind of decay."""
    q, k, v = _heads(B, T, 3)
    k = F.normalize(k.detach(), dim=-1).requires_grad_()
    strength = torch.rand(B, T, HEADS, requires_grad=True)
    return _case(_kernel("delta"), [q, k, v, strength, *_decay(kind, B, T)])


def scan(B: int, T: int) -> Case:
    """Elementwise recurrence."""
    E = HEADS * WIDTH
    return _case(_kernel("scan"), [torch.randn(B, T, E, requires_grad=True), _log_decay(B, T, E)])


def convolution(B: int, T: int) -> Case:
    """Convolution as long as the sequence."""
    E = HEADS * WIDTH
    x, weight = torch.randn(B, T, E, requires_grad=True), torch.randn(T, E, requires_grad=True)
    forward, leaves = _case(_kernel("convolution"), [x, lambda n: weight[:n]])
    return forward, [*leaves, weight]


def short_convolution(B: int, T: int) -> Case:
    """Convolution with four taps; it has no reference form."""
    E = HEADS * WIDTH
    inputs = [torch.randn(B, T, E, requires_grad=True), torch.randn(E, 4, requires_grad=True)]
    return _case(_kernel("short_convolution", "convolution"), inputs)


def tokens(B: int, T: int) -> Case:
    """A static matrix of T x T for each head."""
    return _case(_kernel("mix_tokens", "tokens"), [*_heads(B, T, 1), torch.randn(HEADS, T, T, requires_grad=True)])


CASES: dict[str, Callable[[int, int], Case]] = {
    "attention": attention,
    **{f"recurrence {kind}": partial(recurrence, kind) for kind in ("none", "constant", "scalar", "channel")},
    **{f"delta {kind}": partial(delta, kind) for kind in ("none", "scalar", "channel")},
    "scan": scan,
    "convolution": convolution,
    "short_convolution": short_convolution,
    "tokens": tokens,
}
WITHOUT_REFERENCE = {"short_convolution"}


def sdpa(B: int, T: int) -> Case:
    """The baseline: causal softmax attention."""
    q, k, v = _heads(B, T, 3)

    def forward() -> Tensor:
        return F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        ).transpose(1, 2)

    return forward, [q, k, v]


def timed(forward: Forward, leaves: list[Tensor], **algorithm: str) -> Callable[[], float]:
    """A step that runs forward and backward and returns how many seconds they took."""
    output = forward()
    weights = torch.randn_like(output)

    def step() -> float:
        begin = time.perf_counter()
        torch.autograd.grad(forward(**algorithm), leaves, weights)
        return time.perf_counter() - begin

    return step


def compare(names: list[str], B: int, T: int, rounds: int, with_reference: bool) -> list[dict[str, Any]]:
    """Rows of the table: SDPA, then each kernel of `names`."""
    cases = {name: CASES[name](B, T) for name in names}
    steps = {"sdpa": timed(*sdpa(B, T)), **{name: timed(*case) for name, case in cases.items()}}
    seconds = interleaved(steps, rounds)
    rows = []
    for name, mine in seconds.items():
        row = {
            "kernel": name,
            "batch": B,
            "length": T,
            "milliseconds_min": round(1e3 * min(mine), 2),
            "milliseconds_median": round(1e3 * median(mine), 2),
            "ratio_to_sdpa_min": round(min(seconds["sdpa"]) / min(mine), 2),
            "ratio_to_sdpa_median": round(median(s / m for s, m in zip(seconds["sdpa"], mine, strict=True)), 2),
            "ratio_to_reference": "",
            "rounds": rounds,
        }
        if with_reference and name in cases and name not in WITHOUT_REFERENCE:
            both = {"fast": steps[name], "reference": timed(*cases[name], algorithm="reference")}
            pair = interleaved(both, 1)
            row["ratio_to_reference"] = round(pair["reference"][0] / pair["fast"][0], 1)
        rows.append(row)
    return rows


def main(arguments: list[str]) -> None:
    """Measure, print a table and append it to results/kernels.csv."""
    parser = argparse.ArgumentParser(prog="benchmarks kernels", description=__doc__)
    parser.add_argument("--kernels", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048], help="tokens in a row")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens in a batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--reference-length", type=int, default=2048, help="longest row for the reference; 0 is never")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    facts = machine()
    print(f"{'kernel':20}{'batch':>6}{'length':>7}{'ms min':>10}{'median':>10}  x SDPA (median)  x reference")
    for T in options.lengths:
        B = max(1, options.tokens // T)
        rows = compare(options.kernels, B, T, options.rounds, options.reference_length >= T)
        for row in rows:
            print(
                f"{row['kernel']:20}{B:6}{T:7}{row['milliseconds_min']:10.1f}{row['milliseconds_median']:10.1f}"
                f"{row['ratio_to_sdpa_min']:8.2f} ({row['ratio_to_sdpa_median']:.2f}){row['ratio_to_reference']:>13}"
            )
        append_rows("kernels", [{**row, **facts, "threads": options.threads} for row in rows])
