"""Reading back what a run has left: its model and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paribus.data.tokenizers import load_tokenizer
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

from .checkpoint import load_evaluated
from .folder import read_record
from .model import build_model
from .run import Run


def load_run(folder: Path) -> tuple[Run, ParibusForCausalLM, Any]:
    """The run in `folder`, its model with the newest weights that it evaluates, and its tokenizer.

    Raises:
        ValueError: not a run, or one without a whole checkpoint.
    """
    run = Run.from_json(read_record(folder)["run"])
    model = build_model(run)
    if load_evaluated(folder / "checkpoints", model) == 0:
        raise ValueError(f"'{folder}' has no whole checkpoint yet")
    return run, model.eval(), load_tokenizer(run.data.tokenizer)
