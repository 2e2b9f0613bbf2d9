"""Reading back what a run has left: its model and tokenizer."""

from __future__ import annotations

from pathlib import Path

from paribus.nn.task import TaskModel

from .checkpoint import load_evaluated
from .folder import read_record
from .model import build_model
from .run import Run


def load_run(folder: Path) -> tuple[Run, TaskModel]:
    """The run in `folder`, and its model with the newest weights that it evaluates.

    Raises:
        ValueError: not a run, or one without a whole checkpoint.
    """
    run = Run.from_json(read_record(folder)["run"])
    model = build_model(run)
    if load_evaluated(folder / "checkpoints", model) == 0:
        raise ValueError(f"'{folder}' has no whole checkpoint yet")
    return run, model.eval()
