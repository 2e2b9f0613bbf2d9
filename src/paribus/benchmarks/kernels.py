"""Kernels, forward and backward, beside torch's softmax attention (SDPA) and their own step-by-step reference.

All run in one process on the same batch of tokens, 4 heads of 64 channels, in interleaved rounds; a ratio above one
says that the kernel is faster. The reference steps through the tokens in float64 and is timed up to --reference-length;
the scan is also compared with the same loop in its own precision, differentiated by autograd. Memory is what a kernel
keeps from its forward to its backward pass, inputs left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paribus.nn.segments import resolve
from paribus.nn.settings import nearest

from .record import append_rows, show
from .timing import interleaved

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


def _case(kernel: Callable[..., tuple[Tensor, Any]], inputs: list[Any], **options: Any) -> Case:
    rows = resolve(inputs[0], None, None)

    def forward(**algorithm: str) -> Tensor:
        return kernel(*inputs, rows=rows, state=None, causal=True, **options, **algorithm)[0]

    return forward, [x for x in (*inputs, *options.values()) if isinstance(x, Tensor)]


def attention(B: int, T: int) -> Case:
    """Softmax attention as the mixers call it."""
    return _case(partial(_kernel("attention"), scale=WIDTH**-0.5), _heads(B, T, 3))


def recurrence(kind: str, B: int, T: int) -> Case:
    """Gated linear recurrence with one kind of decay."""
    return _case(_kernel("recurrence"), [*_heads(B, T, 3), *_decay(kind, B, T)])


def shared_keys(B: int, T: int) -> Case:
    """Gated linear recurrence with scalar decay whose heads share one key and one query."""
    q, k = (torch.randn(B, T, 1, WIDTH, requires_grad=True) for _ in range(2))
    inputs = [q, k, *_heads(B, T, 1), *_decay("scalar", B, T)]
    return _case(_kernel("shared_recurrence", "shared_keys"), inputs)


def values(B: int, T: int) -> Case:
    """Gated linear recurrence read on the value side, decay per channel."""
    return _case(_kernel("recurrence"), [*_heads(B, T, 3), *_decay("channel", B, T)], readout="value")


def bonus(B: int, T: int) -> Case:
    """Gated linear recurrence with a weight of its own for the token itself, decay per channel."""
    weight = torch.randn(HEADS, WIDTH, requires_grad=True)
    return _case(_kernel("recurrence"), [*_heads(B, T, 3), *_decay("channel", B, T)], bonus=weight)


def delta(kind: str, B: int, T: int) -> Case:
    """Gated delta rule with one kind of decay."""
    q, k, v = _heads(B, T, 3)
    k = F.normalize(k.detach(), dim=-1).requires_grad_()
    strength = torch.rand(B, T, HEADS, requires_grad=True)
    return _case(_kernel("delta"), [q, k, v, strength, *_decay(kind, B, T)])


def low_rank(B: int, T: int) -> Case:
    """Delta with a key of its own for erasing and a write beside it: transitions diagonal plus low rank."""
    q, k, r, k2, v2 = _heads(B, T, 5)
    k, r = (F.normalize(x.detach(), dim=-1).requires_grad_() for x in (k, r))
    strength = torch.rand(B, T, HEADS, requires_grad=True)
    inputs = [q, k, None, strength, *_decay("channel", B, T)]
    forward, leaves = _case(_kernel("delta"), inputs, erase=r, erase_undecayed=True, write=(k2, v2))
    return forward, [*leaves, k2, v2]


def scan(B: int, T: int) -> Case:
    """Elementwise recurrence."""
    E = HEADS * WIDTH
    return _case(_kernel("scan"), [torch.randn(B, T, E, requires_grad=True), _log_decay(B, T, E)])


def scan_loop(B: int, T: int) -> Case:
    """The same recurrence as a plain loop under autograd."""
    E = HEADS * WIDTH
    x, log_decay = torch.randn(B, T, E, requires_grad=True), _log_decay(B, T, E)

    def forward() -> Tensor:
        h, states = torch.zeros(B, E), []
        for x_t, decay_t in zip(x.unbind(1), log_decay.exp().unbind(1), strict=True):
            h = decay_t * h + x_t
            states.append(h)
        return torch.stack(states, 1)

    return forward, [x, log_decay]


def state_space(B: int, T: int) -> Case:
    """Mamba's scan: 16 states a channel, steps, writes and reads of each token's own."""
    E, N = HEADS * WIDTH, 16
    x, step = torch.randn(B, T, E, requires_grad=True), torch.rand(B, T, E, requires_grad=True)
    rate = (-torch.rand(N, E)).requires_grad_()
    write, read = (torch.randn(B, T, N, requires_grad=True) for _ in range(2))
    return _case(_kernel("state_space_scan", "state_space"), [x, step, rate, write, read])


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
    "recurrence shared_keys": shared_keys,
    "recurrence value": values,
    "recurrence bonus": bonus,
    **{f"delta {kind}": partial(delta, kind) for kind in ("none", "scalar", "channel")},
    "delta low_rank": low_rank,
    "scan": scan,
    "scan_loop": scan_loop,
    "state_space": state_space,
    "convolution": convolution,
    "short_convolution": short_convolution,
    "tokens": tokens,
}
WITHOUT_REFERENCE = {"short_convolution", "scan_loop"}
_COLUMNS = (
    "kernel",
    "batch",
    "length",
    "milliseconds_min",
    "milliseconds_median",
    "ratio_to_sdpa_min",
    "ratio_to_sdpa_median",
    "ratio_to_reference",
    "ratio_to_loop",
    "saved_bytes",
)


def sdpa(B: int, T: int) -> Case:
    """The baseline: causal softmax attention."""
    q, k, v = _heads(B, T, 3)

    def forward() -> Tensor:
        return F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        ).transpose(1, 2)

    return forward, [q, k, v]


def bench(
    *,
    lengths: list[int],
    tokens: int,
    kernels: list[str] | None,
    reference_length: int,
    rounds: int,
    threads: int,
    results: Path,
) -> None:
    """Measure, print and append to kernels.csv.

    Raises:
        ValueError: unknown kernel.
    """
    for name in kernels or ():
        if name not in CASES:
            raise ValueError(f"unknown kernel '{name}'; {nearest(name, CASES)}")
    torch.set_num_threads(threads)
    for T in lengths:
        rows = compare(kernels or list(CASES), max(1, tokens // T), T, rounds, reference_length >= T)
        show(rows, _COLUMNS)
        append_rows(results, "kernels", rows)


def timed(forward: Forward, leaves: list[Tensor], **algorithm: str) -> Callable[[], float]:
    """A step that runs forward and backward and returns how many seconds they took."""
    output = forward()
    weights = torch.randn_like(output)

    def step() -> float:
        begin = time.perf_counter()
        torch.autograd.grad(forward(**algorithm), leaves, weights)
        return time.perf_counter() - begin

    return step


def saved_bytes(forward: Forward, leaves: list[Tensor]) -> int:
    """What is kept between the forward and the backward pass, the leaves themselves left out."""
    kept: dict[int, int] = {}
    inputs = {leaf.untyped_storage().data_ptr() for leaf in leaves}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    del output
    return sum(kept.values())


def compare(names: list[str], B: int, T: int, rounds: int, with_reference: bool) -> list[dict[str, Any]]:
    """Rows of the table: SDPA, then each kernel of `names`."""
    cases = {"sdpa": sdpa(B, T), **{name: CASES[name](B, T) for name in names}}
    steps = {name: timed(*case) for name, case in cases.items()}
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
            "ratio_to_sdpa_median": round(_ratio(mine, seconds["sdpa"]), 2),
            "ratio_to_reference": "",
            "rounds": rounds,
            "ratio_to_loop": "",
            "saved_bytes": saved_bytes(*cases[name]),
        }
        if name == "scan" and "scan_loop" in seconds:
            row["ratio_to_loop"] = round(_ratio(mine, seconds["scan_loop"]), 2)
        if with_reference and name != "sdpa" and name not in WITHOUT_REFERENCE:
            both = {"fast": steps[name], "reference": timed(*cases[name], algorithm="reference")}
            pair = interleaved(both, 1)
            row["ratio_to_reference"] = round(pair["reference"][0] / pair["fast"][0], 1)
        rows.append(row)
    return rows


def _ratio(mine: list[float], base: list[float]) -> float:
    """The median over the rounds of how many times faster `mine` is."""
    return median(theirs / ours for ours, theirs in zip(mine, base, strict=True))
