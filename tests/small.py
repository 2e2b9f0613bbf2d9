"""The smallest text, run and study that go the whole way, for tests that train."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from paribus.studies.study import Study
from paribus.training.run import Run

WORDS = "the a cat dog sat on mat ran by tree and then saw big red small blue house of old man".split()


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
