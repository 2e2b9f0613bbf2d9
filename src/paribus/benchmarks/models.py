"""Training steps of whole models: ours with each mixer beside our attention, Llama and published Mambas.

All of ours have the same width, depth and, within 0.5 %, the same parameters: the channel mixers are resized. Llama has
the very weights of our attention model. A Mamba of others has no channel mixer, so ours beside it has one that is one
channel wide. A step is the training loop's: forward, backward, clipping, AdamW, on the same batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paribus.nn.backbone import parameter_count

from .record import append_rows, show
from .timing import Loss, interleaved, per_second, ratios, training_step
from .whole import (
    PEERS,
    Peer,
    Shape,
    batch,
    beside_peer,
    default_shape,
    equal_models,
    llama,
    llama_loss,
    ours_loss,
)

Model = tuple[nn.Module, Loss]
_COLUMNS = (
    "length",
    "model",
    "base",
    "parameters",
    "tokens_per_second",
    "ratio",
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
    """Measure, print and append to models.csv.

    Raises:
        ValueError: a mixer that does not exist or does not fit.
    """
    torch.set_num_threads(threads)
    shape = default_shape(width, layers)
    for length in lengths:
        found = compare(shape, length, mixers, tokens, rounds)
        for peer in [peer for peer in PEERS if peer.mixer in mixers]:
            try:
                found.append(compare_peer(shape, length, peer, tokens, rounds))
            except ValueError as problem:  # what was measured is kept
                print(f"no row for {peer.mixer} beside {peer.name}: {problem}")
        rows = [{"width": width, "layers": layers, "length": length, **row} for row in found]
        show(rows, _COLUMNS)
        append_rows(results, "models", rows)


def compare(shape: Shape, length: int, mixers: list[str], tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Rows: our model with attention and with each mixer, beside attention and beside Llama."""
    inputs, targets = batch(tokens, length)
    own = equal_models(shape, length, mixers)
    models: dict[str, Model] = {"llama": (llama(shape, length, own["attention"]), llama_loss)}
    models |= {name: (model, ours_loss) for name, model in own.items()}
    seconds = _seconds(models, inputs, targets, rounds)
    return [
        _row(name, base, models, inputs.numel(), seconds)
        for base in ("attention", "llama")
        for name in models
        if name != base
    ]


def compare_peer(shape: Shape, length: int, peer: Peer, tokens: int, rounds: int) -> dict[str, Any]:
    """Our model of this peer's mixer beside the peer.

    Raises:
        ValueError: the peer is not installed, or not of our size.
    """
    inputs, targets = batch(tokens, length)
    mine, theirs = beside_peer(peer, shape, length)
    models: dict[str, Model] = {peer.mixer: (mine, ours_loss), peer.name: (theirs, peer.loss)}
    seconds = _seconds(models, inputs, targets, rounds)
    return _row(peer.mixer, peer.name, models, inputs.numel(), seconds)


def _seconds(models: dict[str, Model], inputs: Tensor, targets: Tensor, rounds: int) -> dict[str, list[float]]:
    steps = {name: training_step(model, loss, inputs, targets) for name, (model, loss) in models.items()}
    return interleaved(steps, rounds)


def _row(
    name: str, base: str, models: dict[str, Model], tokens: int, seconds: dict[str, list[float]]
) -> dict[str, Any]:
    found = ratios(seconds[name], seconds[base], "base")
    return {
        "model": name,
        "base": base,
        "parameters": parameter_count(models[name][0]),
        "base_parameters": parameter_count(models[base][0]),
        "tokens_per_step": tokens,
        "tokens_per_second": per_second(tokens, seconds[name]),
        "base_tokens_per_second": per_second(tokens, seconds[base]),
        "ratio": found.pop("ratio_to_base"),
        **found,
    }
