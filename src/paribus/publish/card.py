"""The model card: what was measured, the exact commands, what is not supported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template

import torch
import transformers

from ..nn.backbone import parameter_count
from .form import Form


def model_card(form: Form, facts: Mapping[str, object], *, name: str, folder: str) -> str:
    """The text of README.md.

    Args:
        facts: what was measured: label -> number or short text. Size and architecture are added here.
        name: the title.
        folder: the folder's name, for the commands.
    """
    model, config = form.model, form.model.config
    used = dict.fromkeys(config.layer_blocks())
    layers = ", ".join(f"{block} ({_parts(config.blocks[block])})" for block in used)
    known = {
        "parameters": parameter_count(model),
        "layers": f"{config.num_hidden_layers} of width {config.hidden_size}: {layers}",
        **form.facts(),
        "weights": str(model.dtype).removeprefix("torch."),
    }
    threads = torch.get_num_threads()
    told = {key: getattr(form, key) for key in ("library", "pipeline_tag", "what", "packages", "proved", "checked")}
    body = _template(f"tasks/{config.task['name']}.md").substitute(form.commands(), folder=json.dumps(folder))
    return _template("card.md").substitute(
        told,
        name=_line(name),
        facts="\n".join(["| | |", "| --- | --- |", *(_row(*fact) for fact in {**facts, **known}.items())]),
        body=body,
        torch=torch.__version__,
        transformers=transformers.__version__,
        threads=f"{threads} thread{'s' * (threads != 1)}",
        tolerance=f"{torch.finfo(model.dtype).eps ** 0.5:.0e}",
    )


def _template(name: str) -> Template:
    return Template((Path(__file__).parent / name).read_text(encoding="utf-8"))


def _parts(block: Mapping[str, Mapping[str, object] | None]) -> str:
    named = [block[part] for part in ("mixer", "channel")]
    return " + ".join(str(part["name"]) for part in named if part is not None)


def _row(label: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = str(value)
    else:
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f"| {_line(label)} | {_line(text)} |"


def _line(text: str) -> str:
    """`text` as one line that breaks no table."""
    return " ".join(text.split()).replace("|", "\\|")
