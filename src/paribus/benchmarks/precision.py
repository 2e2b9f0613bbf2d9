"""Training steps in bfloat16 (autocast, weights and optimizer in float32) beside the same steps in float32.

Each mixer's model, of equal parameters, is there twice with the same weights. What bfloat16 gains depends on the
processor's instructions for it, which the results name.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from paribus.nn.backbone import parameter_count

from .record import append_rows, bf16_instructions, show
from .timing import interleaved, per_second, ratios, training_step
from .whole import batch, default_shape, equal_models, ours_loss

_COLUMNS = (
    "length",
    "mixer",
    "parameters",
    "tokens_per_second",
    "ratio_to_fp32",
    "ratio_quartile_1",
    "ratio_quartile_3",
)


def bench(
    *,
    lengths: list[int],
    tokens: int,
    width: int,
    layers: int,
    mixers: list[str],
    rounds: int,
    threads: int,
    results: Path,
) -> None:
    """Measure, print and append to precision.csv.

    Raises:
        ValueError: a mixer that does not exist or does not fit.
    """
    torch.set_num_threads(threads)
    print(f"instructions for bfloat16: {bf16_instructions()}")
    for length in lengths:
        inputs, targets = batch(tokens, length)
        rows: list[dict[str, Any]] = []
        for mixer, model in equal_models(default_shape(width, layers), length, mixers).items():
            steps = {
                "fp32": training_step(copy.deepcopy(model), ours_loss, inputs, targets),
                "bf16": training_step(model, ours_loss, inputs, targets, half=True),
            }
            seconds = interleaved(steps, rounds)
            rows.append(
                {
                    "width": width,
                    "layers": layers,
                    "length": length,
                    "mixer": mixer,
                    "parameters": parameter_count(model),
                    "tokens_per_step": inputs.numel(),
                    "tokens_per_second": per_second(inputs.numel(), seconds["bf16"]),
                    **ratios(seconds["bf16"], seconds["fp32"], "fp32"),
                }
            )
        show(rows, _COLUMNS)
        append_rows(results, "precision", rows)
