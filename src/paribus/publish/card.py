"""The model card: what was measured, the exact commands, what is not supported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template

import torch
import transformers

from ..nn.backbone import parameter_count
from ..nn.tasks.causal_lm import ParibusForCausalLM

_CARD = Template(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))


def model_card(model: ParibusForCausalLM, facts: Mapping[str, object], *, name: str, folder: str) -> str:
    """The text of README.md.

    Args:
        facts: what was measured: label -> number or short text. Size and architecture are added here.
        name: the title.
        folder: the folder's name, for the commands.
    """
    config = model.config
    used = dict.fromkeys(config.layer_blocks())
    layers = ", ".join(f"{block} ({_parts(config.blocks[block])})" for block in used)
    known = {
        "parameters": parameter_count(model),
        "layers": f"{config.num_hidden_layers} of width {config.hidden_size}: {layers}",
        "configured for sequences up to, tokens": config.max_position_embeddings,
        "vocabulary, tokens": config.vocab_size,
        "weights": str(model.dtype).removeprefix("torch."),
    }
    threads = torch.get_num_threads()
    return _CARD.substitute(
        name=_line(name),
        facts="\n".join(["| | |", "| --- | --- |", *(_row(*fact) for fact in {**facts, **known}.items())]),
        folder=json.dumps(folder),
        torch=torch.__version__,
        transformers=transformers.__version__,
        threads=f"{threads} thread{'s' * (threads != 1)}",
        tolerance=f"{torch.finfo(model.dtype).eps ** 0.5:.0e}",
    )


def _parts(block: Mapping[str, Mapping[str, object]]) -> str:
    return " + ".join(str(block[part]["name"]) for part in ("mixer", "channel"))


def _row(label: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = str(value)
    else:
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f"| {_line(label)} | {_line(text)} |"


def _line(text: str) -> str:
    """`text` as one line that breaks no table."""
    return " ".join(text.split()).replace("|", "\\|")
