"""Peak memory and time of one training step, forward and backward, at several depths and by three ways to keep it low.

Each measurement is a process of its own, in interleaved rounds: the peak of its resident memory less what it held just
before the step, after a short step that is not counted. Gradients of the parameters are in it, and grow with depth for
all; what is left without them is what the way decides. The reversible model is another function of equal parameters.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from paribus.evaluation.cost import peak_memory_bytes, reset_peak_memory
from paribus.nn.backbone import parameter_count
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

from .record import append_rows, show
from .timing import interleaved
from .whole import VOCABULARY, batch, ours_loss

_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc then gives freed tensors back at once; else holes between gradients that stay count as memory in use."""
WAYS = ("plain", "checkpointing", "reversible")
_COLUMNS = (
    "layers",
    "way",
    "parameters",
    "peak_bytes",
    "bytes_without_gradients",
    "share_of_checkpointing",
    "milliseconds_median",
    "time_to_plain",
)


def bench(
    *, depths: list[int], width: int, length: int, tokens: int, mixer: str, rounds: int, threads: int, results: Path
) -> None:
    """Measure, print and append to memory.csv.

    Raises:
        ValueError: a mixer that does not exist or does not fit.
    """
    torch.set_num_threads(threads)
    build("plain", mixer, 1, width, length)
    shape = {"mixer": mixer, "width": width, "length": length, "tokens_per_step": batch(tokens, length)[0].numel()}
    for layers in depths:
        rows = [{**shape, **row} for row in compare(mixer, layers, width, length, tokens, rounds, threads)]
        show(rows, _COLUMNS)
        append_rows(results, "memory", rows)


def compare(
    mixer: str, layers: int, width: int, length: int, tokens: int, rounds: int, threads: int
) -> list[dict[str, Any]]:
    """One row for each way, all at one depth."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}

    def process(way: str) -> Callable[[], float]:
        arguments = [way, mixer, *map(str, (layers, width, length, tokens, threads))]

        def run() -> float:
            command = [sys.executable, "-m", "paribus.benchmarks.memory", *arguments]
            variables = {**os.environ, **_RETURN_MEMORY}
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=variables).stdout
            found[way].append(json.loads(output))
            seconds: float = found[way][-1]["seconds"]
            return seconds

        return run

    interleaved({way: process(way) for way in WAYS}, rounds)
    counted = {way: values[1:] for way, values in found.items()}  # the first round is not, as everywhere
    return [_row(layers, way, counted) for way in WAYS]


def _row(layers: int, way: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    def middle(key: str, base: str | None = None) -> float:
        return median(
            one[key] / (other[key] if base else 1) for one, other in zip(found[way], found[base or way], strict=True)
        )

    parameters = found[way][0]["parameters"]
    return {
        "layers": layers,
        "way": way,
        "parameters": parameters,
        "peak_bytes": round(middle("bytes")),
        "bytes_without_gradients": round(middle("bytes")) - 4 * parameters,
        "share_of_checkpointing": round(middle("bytes", "checkpointing"), 3),
        "milliseconds_median": round(1e3 * middle("seconds"), 1),
        "time_to_plain": round(middle("seconds", "plain"), 3),
        "rounds": len(found[way]),
    }


def build(way: str, mixer: str, layers: int, width: int, length: int) -> ParibusForCausalLM:
    """The model that trains in the given way.

    Raises:
        ValueError: a mixer that does not exist or does not fit.
    """
    residual = {"name": "reversible" if way == "reversible" else "pre"}
    config = ParibusConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        max_position_embeddings=length,
        blocks={"main": {"mixer": {"name": mixer}, "channel": {"name": "glu"}, "residual": residual}},
    )
    model = ParibusForCausalLM(config)
    initialize(model, seed=0)
    if way == "checkpointing":
        model.model.gradient_checkpointing = True
    return model.train()


def measure(way: str, mixer: str, layers: int, width: int, length: int, tokens: int) -> dict[str, Any]:
    """Bytes and seconds of a step in this process."""
    model = build(way, mixer, layers, width, length)
    inputs, targets = batch(tokens, length)

    def step(columns: int) -> float:
        begin = time.perf_counter()
        ours_loss(model, inputs[:, :columns], targets[:, :columns].contiguous()).backward()
        seconds = time.perf_counter() - begin
        model.zero_grad()
        return seconds

    step(min(8, length))
    reset_peak_memory()
    before = peak_memory_bytes("cpu")
    seconds = step(length)
    return {"bytes": peak_memory_bytes("cpu") - before, "seconds": seconds, "parameters": parameter_count(model)}


if __name__ == "__main__":
    way, mixer, *numbers = sys.argv[1:]
    *sizes, threads = map(int, numbers)
    torch.set_num_threads(threads)
    print(json.dumps(measure(way, mixer, *sizes)))
