"""Publishing a run, and opening what was published or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paribus.data.batches import Data
from paribus.data.tokenizers import load_tokenizer
from paribus.evaluation.metrics import METRICS
from paribus.nn.task import TaskModel
from paribus.training.folder import read_record, read_result
from paribus.training.load import load_run
from paribus.training.run import Run

from .form import Symbols
from .publication import load_published, publish_model


def publish_run(folder: Path, out: Path) -> Path:
    """Publish the finished run in `folder` as the Hugging Face folder `out`, proven to load.

    The run's data need not be there any more.

    Raises:
        ValueError: not a run, one that is unfinished or diverged, or what `publish_model` refuses.
    """
    result = read_result(folder)
    run, model, symbols = open_run(folder)
    if result is None or result["status"] != "finished":
        raise ValueError(f"'{folder}' cannot be published: it is {'unfinished' if result is None else 'diverged'}")
    of = "documents" if isinstance(run.data, Data) else "images"
    scores = result["scores"]["test"]
    card = {
        **{f"{METRICS[metric].title}, held-out test {of}": value for metric, value in scores.items()},
        **_trained_on(run, result),
        "training FLOPs": result["flops"],
        "optimizer": f"{run.optimizer.name}, learning rate {run.optimizer.lr:g}, {run.schedule.name} schedule",
        "seed": run.seed,
        "run": f"{run.name}, fingerprint {read_record(folder)['fingerprint'][:16]}",
    }
    return publish_model(model, symbols, out, card=card, name=run.name)


def open_run(folder: Path) -> tuple[Run, TaskModel, Symbols]:
    """The run in `folder`, its model, and what the model's numbers stand for.

    Raises:
        ValueError: not a run, or one without a whole checkpoint.
    """
    run, model = load_run(folder)
    if isinstance(run.data, Data):
        return run, model, load_tokenizer(run.data.tokenizer)
    sampling = run.evaluation.sampling
    model.config.sampling = {"steps": sampling.steps, "solver": sampling.solver, "guidance": sampling.guidance}
    return run, model, tuple(read_record(folder)["manifests"]["corpora"][run.data.images]["classes"])


def load_any(folder: Path) -> tuple[Any, Any]:
    """The model of a run or of a published folder, and its tokenizer or the names of its classes.

    Raises:
        ValueError: `folder` is neither.
    """
    if (folder / "run.json").is_file():
        return open_run(folder)[1:]
    if not any((folder / name).is_file() for name in ("config.json", "model_index.json")):
        raise ValueError(f"'{folder}' is neither a run (run.json) nor a Hugging Face folder (config.json)")
    return load_published(folder)


def _trained_on(run: Run, result: dict[str, Any]) -> dict[str, str]:
    tokens = f"{result['tokens']:,} tokens"
    if isinstance(run.data, Data):
        corpora = ", ".join(run.data.corpora)
        return {"trained on": f"{tokens} of {corpora}, in sequences of {run.data.sequence_length:,}"}
    told = {"trained on": f"{result['step'] * run.data.batch_size:,} images ({tokens}) of {run.data.images}"}
    sampling = run.evaluation.sampling
    if run.model["task"]["name"] == "image_generation" and sampling.num_images:
        drawn = f"{sampling.num_images:,}, in {sampling.steps} steps of {sampling.solver}"
        told["samples judged"] = f"{drawn}, guidance {sampling.guidance:g}"
    return told
