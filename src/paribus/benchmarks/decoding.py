"""Milliseconds and state bytes of one more token after a prompt of each length, for models of equal parameters.

The prompt is read in one call, once; then all models decode in interleaved rounds, each a few tokens a round, one call
a token. A recurrent mixer's time and state do not depend on the prompt; attention's grow with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from paribus.nn.backbone import parameter_count
from paribus.nn.cache import StateCache
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

from .record import append_rows, show
from .timing import interleaved, ratios
from .whole import VOCABULARY, default_shape, equal_models

_COLUMNS = (
    "length",
    "mixer",
    "parameters",
    "milliseconds_median",
    "state_bytes",
    "prompt_seconds",
    "ratio_to_attention",
)


def bench(
    *,
    lengths: list[int],
    width: int,
    layers: int,
    mixers: list[str],
    steps: int,
    rounds: int,
    threads: int,
    results: Path,
) -> None:
    """Measure, print and append to decoding.csv.

    Raises:
        ValueError: a mixer that does not exist or does not fit.
    """
    torch.set_num_threads(threads)
    longest = max(lengths) + steps * (rounds + 1)
    models = equal_models(default_shape(width, layers), longest, mixers)
    for length in lengths:
        rows = [
            {"width": width, "layers": layers, "length": length, **row}
            for row in compare(models, length, steps, rounds)
        ]
        show(rows, _COLUMNS)
        append_rows(results, "decoding", rows)


@torch.no_grad()
def compare(models: dict[str, ParibusForCausalLM], length: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each model, after a prompt of `length` tokens."""
    prompt = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))
    caches, prompt_seconds = {}, {}
    for name, model in models.items():
        begin = time.perf_counter()
        caches[name] = model.eval()(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values
        prompt_seconds[name] = time.perf_counter() - begin
    state_bytes = {name: cache.num_bytes() for name, cache in caches.items()}
    decoders = {name: _decoder(model, caches[name], steps) for name, model in models.items()}
    seconds = interleaved(decoders, rounds)
    return [
        {
            "mixer": name,
            "parameters": parameter_count(model),
            "milliseconds_median": round(1e3 * median(seconds[name]) / steps, 3),
            "state_bytes": state_bytes[name],
            "prompt_seconds": round(prompt_seconds[name], 3),
            **ratios(seconds[name], seconds["attention"], "attention"),
        }
        for name, model in models.items()
    ]


def _decoder(model: ParibusForCausalLM, cache: StateCache, steps: int) -> Callable[[], float]:
    """Decodes `steps` tokens more at each call; returns how many seconds they took."""
    token = torch.zeros(1, 1, dtype=torch.long)

    @torch.no_grad()
    def decode() -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            model(input_ids=token, past_key_values=cache, use_cache=True)
        return time.perf_counter() - begin

    return decode
