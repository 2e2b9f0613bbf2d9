"""On a CUDA GPU: each kernel beside torch's softmax attention (SDPA), and training steps of models of some 124 million.

    python -m paribus.benchmarks.gpu kernels|models [--results DIR]

Times are those between two events on the GPU, the median of a few rounds. Kernels run on 16,384 tokens, 4 heads of 64
channels, forward and backward; models on 8 rows of 1,024 tokens in bfloat16 by autocast, with AdamW. Where the package
flash-linear-attention is installed, the gated kernels run by it too. It is no part of `paribus bench`, which runs
everywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from paribus.nn.backbone import parameter_count
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.kernels.choice import Implementation, using
from paribus.nn.kernels.fla import implementation
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

from .command import RESULTS
from .kernels import CASES, sdpa
from .record import append_rows

TOKENS, LENGTHS, ROUNDS = 16_384, (2048, 8192), 5
VOCABULARY, WIDTH, LAYERS, ROWS, LENGTH = 50_304, 768, 12, 8, 1024
GATED = (
    "recurrence none",
    "recurrence scalar",
    "recurrence channel",
    "delta scalar",
    "delta channel",
    "delta low_rank",
)
MODELS = [
    *(
        (mixer, "torch", False)
        for mixer in ("attention", "gla", "gated_delta_net", "rg_lru", "mamba2", "mamba", "hyena")
    ),
    *((mixer, "fla", False) for mixer in ("gla", "gated_delta_net")),
    *((mixer, "torch", True) for mixer in ("attention", "gla", "gated_delta_net")),
]
"""(mixer, kernels, whether it is compiled)."""
_SLOW = 2000.0
"""Milliseconds above which one round is enough."""


def milliseconds(step: Callable[[], Any]) -> float:
    """The median of a few rounds after two that are not counted."""
    found: list[float] = []
    for number in range(ROUNDS + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end))
        if number and found[-1] > _SLOW:
            return found[-1]
    return median(found[2:])


def installed() -> Implementation | None:
    """flash-linear-attention, if it is there."""
    try:
        return implementation()
    except ValueError:
        return None


def _implementations(kernel: str) -> list[Implementation | None]:
    """Who can compute a kernel; None is torch."""
    other = installed() if kernel in GATED else None
    return [None] if other is None else [None, other]


def autocast(precision: str) -> AbstractContextManager[Any]:
    """Around a forward pass in "fp32" or "bf16"."""
    return torch.autocast("cuda", torch.bfloat16) if precision == "bf16" else nullcontext()


def kernel_rows(T: int, precision: str) -> Iterator[dict[str, Any]]:
    """SDPA, then every kernel but the plain loop."""
    base = 0.0
    for name in ("sdpa", *(name for name in CASES if name != "scan_loop")):
        for kernels in _implementations(name):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            with torch.device("cuda"):
                forward, leaves = (sdpa if name == "sdpa" else CASES[name])(TOKENS // T, T)
                weights = torch.randn_like(forward())

            def step(forward: Any = forward, leaves: Any = leaves, weights: Any = weights) -> None:
                with autocast(precision):
                    output = forward()
                torch.autograd.grad(output, leaves, weights.to(output.dtype))

            with using(kernels):
                found = milliseconds(step)
            base = base or found
            yield {
                "device": torch.cuda.get_device_name(),
                "kernel": name,
                "by": "torch" if kernels is None else kernels.name,
                "precision": precision,
                "batch": TOKENS // T,
                "length": T,
                "milliseconds": round(found, 3),
                "ratio_to_sdpa": round(base / found, 3),
                "peak_mebibytes": torch.cuda.max_memory_allocated() >> 20,
            }


def model_row(mixer: str, kernels: str, compiled: bool) -> dict[str, Any]:
    """One model's training steps."""
    block = {"mixer": {"name": mixer}, "channel": {"name": "glu"}}
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    config = ParibusConfig(
        **sizes,  # type: ignore[arg-type]  # all are numbers
        max_position_embeddings=LENGTH,
        blocks={"main": block},
        tie_word_embeddings=True,
    )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = ParibusForCausalLM(config)
    initialize(model, seed=0)
    nn.Module.to(model, "cuda").train()
    if compiled:
        model.model.compile(dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), device="cuda")
    by = installed() if kernels == "fla" else None

    def step() -> None:
        with using(by):
            with autocast("bf16"):
                loss = model(input_ids=ids[:, :-1], targets=ids[:, 1:], return_logits=False).loss
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    found = milliseconds(step)
    return {
        "device": torch.cuda.get_device_name(),
        "mixer": mixer,
        "kernels": kernels,
        "compiled": compiled,
        "parameters": parameter_count(model),
        "batch": ROWS,
        "length": LENGTH,
        "milliseconds": round(found, 2),
        "tokens_per_second": round(1e3 * ROWS * LENGTH / found),
        "peak_mebibytes": torch.cuda.max_memory_allocated() >> 20,
    }


def main() -> None:
    """Measure, print and append to gpu_kernels.csv or gpu_models.csv, row by row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("kernels", "models"))
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--only", nargs="+", metavar="MIXER", help="of the models; all when left out")
    parser.add_argument("--compiled", choices=("yes", "no"), help="of the models; both when left out")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA GPU, and torch sees none")
    if options.what == "kernels":
        for precision in ("bf16", "fp32"):
            for T in LENGTHS:
                for row in kernel_rows(T, precision):
                    _keep(options.results, "gpu_kernels", row)
        return
    for mixer, kernels, compiled in MODELS:
        wanted = mixer in (options.only or [mixer]) and options.compiled in (None, "yes" if compiled else "no")
        if wanted and (kernels == "torch" or installed() is not None):
            _keep(options.results, "gpu_models", model_row(mixer, kernels, compiled))


def _keep(results: Path, name: str, row: dict[str, Any]) -> None:
    """Written at once: a measurement that is cut off has kept what it found."""
    print(*(f"{key}={value}" for key, value in row.items() if key != "device"), flush=True)
    append_rows(results, name, [row])


if __name__ == "__main__":
    main()
