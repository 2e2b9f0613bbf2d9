"""The smallest text, run and study that go the whole way, for tests that train."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from paribus.studies.executor import Task
from paribus.studies.study import Study
from paribus.training import loop
from paribus.training.journal import JOURNAL, read_journal
from paribus.training.load import load_run
from paribus.training.run import Run

WORDS = ("the", "a", "cat", "dog", "sat", "on", "mat", "ran", "by", "tree", "and", "then", "saw", "big", "old", "man")


def write_text(path: Path, documents: int = 300) -> Path:
    """A text that any model learns something of, enough documents for three splits."""
    draw = random.Random(0)
    path.write_text("\n\n".join(" ".join(draw.choice(WORDS) for _ in range(60)) for _ in range(documents)))
    return path


def settings(text: Path, *, steps: int = 20, mixer: str = "attention", **values: Any) -> dict[str, Any]:
    """The JSON of a run of some 10,000 parameters; `values` replace whole keys."""
    block = {"mixer": {"name": mixer}, "channel": {"name": "glu"}}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 64}
    return {
        "name": "small",
        "model": {**sizes, "blocks": {"main": block}},
        "data": {"corpora": {str(text): 1.0}, "sequence_length": 32, "batch_size": 2},
        "budget": {"steps": steps},
        "evaluation": {
            "points": 2,
            "validation_documents": 3,
            "test_documents": 6,
            "max_bytes_per_document": 200,
        },
        **values,
    }


def run(text: Path, **values: Any) -> Run:
    """The same as a `Run`."""
    return Run.from_json(settings(text, **values))


def run_file(path: Path, text: Path, **values: Any) -> Path:
    """The same as a file."""
    path.write_text(json.dumps(settings(text, **values)))
    return path


def study(text: Path, **values: Any) -> Study:
    """Attention against a gated linear recurrence, two seeds; `values` replace fields."""
    found = Study(
        question="Which of two small models is better?",
        base=run(text),
        vary={"model.blocks.main.mixer": {name: {"name": name} for name in ("attention", "gla")}},
        reference="attention",
        seeds=(1, 2),
        baseline_orders=(1, 2),
    )
    return replace(found, **values)


def task(text: Path) -> Task:
    """The same as a worker gets it."""
    return Task(run(text), Path("runs/small"))


def lasting(facts: dict[str, Any]) -> dict[str, Any]:
    """The part of a result or of an event that neither the clock nor the memory decides."""
    passing = {"seconds", "tokens_per_second", "peak_memory_bytes"}
    return {key: value for key, value in facts.items() if key not in passing}


def journal(folder: Path) -> list[dict[str, Any]]:
    """The lasting part of every event of a run."""
    return [lasting(event) for event in read_journal(folder / JOURNAL)]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same bits."""
    first, second = (load_run(folder)[1].state_dict() for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def paribus(*arguments: object, **variables: str) -> subprocess.Popen[str]:
    """The command line in a process group of its own, which heeds Ctrl-C even when the tests run in the background."""
    heed = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; from paribus.cli import main; sys.exit(main())"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **variables},
        start_new_session=True,
        **pipes,
    )


def train_and_die(run: Run, folder: Path, cache: Path, writes: int) -> None:
    """Train with a checkpoint at every step; kill this process just before it syncs or renames for the n-th time."""
    left = writes

    def counting(write: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            write(*arguments)

        return counted

    os.fsync, os.replace = counting(os.fsync), counting(os.replace)
    loop.CHECKPOINT_SECONDS = 0.0
    loop.train(run, folder, cache)
