"""Training tokens per second, forward, backward, clipping and AdamW, beside transformers' Llama in one process.

Our attention model and Llama get the same shape, the same weights and the same batch, so they compute the same loss
(checked before anything is timed). Rounds are interleaved: in each, every model takes one step, in alternating order,
and the ratio to Llama is taken within the round, so that a busy machine slows both. With one thread the clock can be
the processor's, which stands still while other programs run. The step is that of the training loop: no logits are
returned, gradients are clipped at norm 1.

The inner width of `demo` and `odd` is what the library's default expansion gives, 213 and 683; that of `wide`, 688, is
one that matrix products like, so that Llama is also seen at its best.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from paribus.nn.backbone import parameter_count

from .record import append_rows, show
from .timing import CLOCKS, interleaved, per_second, ratios, training_step
from .whole import Shape, batch, llama, llama_loss, ours, ours_loss

SHAPES = {"demo": Shape(80, 4, 213), "odd": Shape(256, 6, 683), "wide": Shape(256, 6, 688)}
_COLUMNS = (
    "shape",
    "length",
    "model",
    "parameters",
    "tokens_per_second",
    "ratio_to_llama",
    "ratio_quartile_1",
    "ratio_quartile_3",
)


def bench(
    *,
    shapes: list[str],
    lengths: list[int],
    tokens: int,
    mixers: list[str],
    clock: str,
    rounds: int,
    threads: int,
    results: Path,
) -> None:
    """Measure, print and append to training_speed.csv.

    Raises:
        ValueError: a mixer that does not exist or does not fit.
    """
    torch.set_num_threads(threads)
    for shape in shapes:
        for length in lengths:
            found = compare(SHAPES[shape], length, mixers, tokens, rounds, clock)
            rows = [{"shape": shape, "length": length, **row, "clock": clock} for row in found]
            show(rows, _COLUMNS)
            append_rows(results, "training_speed", rows)


def compare(
    shape: Shape, length: int, mixers: list[str], tokens: int, rounds: int, clock: str = "wall"
) -> list[dict[str, Any]]:
    """Rows of the table: Llama, then our model with each mixer, `tokens` tokens a step."""
    inputs, targets = batch(tokens, length)
    twin = ours(shape, length)
    models: dict[str, nn.Module] = {"llama": llama(shape, length, twin)}
    torch.testing.assert_close(ours_loss(twin, inputs, targets), llama_loss(models["llama"], inputs, targets))
    models |= {mixer: ours(shape, length, mixer) for mixer in mixers}
    steps = {
        name: training_step(model, llama_loss if name == "llama" else ours_loss, inputs, targets, clock=CLOCKS[clock])
        for name, model in models.items()
    }
    seconds = interleaved(steps, rounds)
    return [
        {
            "model": name,
            "parameters": parameter_count(model),
            "tokens_per_step": inputs.numel(),
            "tokens_per_second": per_second(inputs.numel(), seconds[name]),
            **ratios(seconds[name], seconds["llama"], "llama"),
        }
        for name, model in models.items()
    ]
