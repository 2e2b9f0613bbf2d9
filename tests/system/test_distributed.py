"""Several processes that train one run: the same numbers, one writer, one line when something is wrong."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from paribus.nn.component import CHANNELS, MIXERS, RESIDUALS
from paribus.training import loop
from paribus.training.files import read_json
from paribus.training.load import load_run
from paribus.training.loop import Tick, train
from paribus.training.run import Run, read_run
from tests import small
from tests.ranks import command, join, start_ranks

pytestmark = pytest.mark.slow

STEPS = 8
DATA = {"sequence_length": 32, "batch_size": 4}
ALIKE = {"mixture_of_experts": {"balance_loss": 0.0}}
"""Without what is no mean over tokens: the balance of each process's share is another than that of the whole batch."""
EVALUATION = {"points": 1, "validation_documents": 1, "test_documents": 2, "max_bytes_per_document": 60}


def make_run(text: Path, name: str, **values: Any) -> Run:
    data = {"corpora": {str(text): 1.0}, **DATA, **values.pop("data", {})}
    return small.run(text, **{"name": name, "steps": STEPS, "data": data, "evaluation": EVALUATION, **values})


def model_of(blocks: dict[str, Any], **values: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "num_hidden_layers": len(blocks), "max_position_embeddings": 32}
    return {**sizes, "blocks": blocks, "layout": list(blocks), **values}


def many_runs(text: Path) -> list[Run]:
    """Every way in which processes could disagree: all components, and all that the update may do."""
    glu = {"name": "glu", "expansion": 1.0}
    mixers = {name: {"mixer": {"name": name}, "channel": glu} for name in MIXERS.names()}
    channels = {
        name: {"mixer": {"name": "gla"}, "channel": {"name": name, **ALIKE.get(name, {})}} for name in CHANNELS.names()
    }
    residuals = {
        name: model_of({"main": {"mixer": {"name": "attention"}, "channel": glu, "residual": {"name": name}}})
        for name in RESIDUALS.names()
    }
    short = {"max_position_embeddings": 8}
    tied = model_of({"main": mixers["gla"]}, tie_word_embeddings=True)
    return [
        make_run(text, "attention"),
        make_run(text, "mixers", model=model_of(mixers, **short), steps=2, data={"sequence_length": 8}),
        make_run(text, "channels", model=model_of(channels, **short), steps=2, data={"sequence_length": 8}),
        *(make_run(text, f"residual_{name}", model=model, steps=2) for name, model in residuals.items()),
        make_run(text, "pieces", model=tied, accumulation=2, z_loss=1e-3, ema_decay=0.9, gradient_checkpointing=True),
        make_run(text, "documents", mixer="gla", data={"isolate_documents": True}),
    ]


def train_all(runs: list[Run], root: Path, cache: Path) -> None:
    for run in runs:
        train(run, root / run.name, cache)


def curve(folder: Path, name: str = "loss") -> list[float]:
    return [event[name] for event in small.journal(folder) if event["event"] == "train"]


def test_two_processes_train_as_one_does(text: Path, cache: Path, tmp_path: Path) -> None:
    runs = many_runs(text)
    one, two = tmp_path / "one", tmp_path / "two"
    processes = start_ranks(2, train_all, runs, two, cache)
    train_all(runs, one, cache)
    assert join(processes) == [0, 0]
    for run in runs:
        folders = one / run.name, two / run.name
        for name in ("loss", "gradient_norm"):
            found, expected = (torch.tensor(curve(folder, name)) for folder in reversed(folders))
            torch.testing.assert_close(found, expected, rtol=2e-4, atol=0, msg=lambda text: f"{run.name}: {text}")  # noqa: B023
        single, double = (read_json(folder / "result.json") for folder in folders)
        assert double["scores"]["test"]["bits_per_byte"] == pytest.approx(
            single["scores"]["test"]["bits_per_byte"], rel=1e-4
        ), run.name
        assert double["batches_sha256"] == single["batches_sha256"]
        assert [read_json(folder / "run.json")["environment"]["processes"] for folder in folders] == [[1], [2]]


def train_until(run: Run, folder: Path, cache: Path, step: int, rank: str) -> None:
    """Train with a checkpoint at every step; process `rank` is killed after `step` (0: never)."""

    def watch(tick: Tick) -> None:
        if tick.step == step and os.environ["RANK"] == rank:
            os.kill(os.getpid(), signal.SIGKILL)

    loop.CHECKPOINT_SECONDS = 0.0
    train(run, folder, cache, watch=watch)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_killed_and_continued(text: Path, cache: Path, tmp_path: Path, rank: str) -> None:
    """With dropout, whose noise each process draws for itself."""
    block = {"mixer": {"name": "gla"}, "channel": {"name": "glu"}, "dropout": 0.1}
    run = make_run(text, "dropout", model=model_of({"main": block}))
    whole, again, alone = (tmp_path / name for name in ("whole", "again", "alone"))
    assert join(start_ranks(2, train_until, run, whole, cache, 0, rank)) == [0, 0]
    codes = join(start_ranks(2, train_until, run, again, cache, 5, rank))
    assert codes[int(rank)] == -signal.SIGKILL
    assert codes[1 - int(rank)] not in (None, 0), "the other process ends too, and is not left waiting"
    assert read_json(again / "result.json") is None
    assert join(start_ranks(2, train_until, run, again, cache, 0, rank)) == [0, 0]
    assert small.journal(again) == small.journal(whole)
    assert small.same_weights(again, whole)
    assert not [path for path in again.rglob(".*") if path.name != ".lock"]

    join(start_ranks(2, train_until, run, alone, cache, 5, rank))
    train(run, alone, cache)
    assert read_json(alone / "run.json")["environment"]["processes"] == [2, 1]
    assert curve(alone)[:4] == curve(whole)[:4]
    assert len(curve(alone)) == STEPS
    assert load_run(alone)[1].training is False


def run_command(run: Path, root: Path, output: Path) -> list[int | None]:
    return join(start_ranks(2, command, ["run", str(run), "--root", str(root)], output))


def test_one_line_when_something_is_wrong(
    text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARIBUS_CACHE", str(cache))
    file, output = tmp_path / "run.json", tmp_path / "output"
    small.run_file(file, text, data={"corpora": {str(text): 1.0}, "sequence_length": 32, "batch_size": 3})
    assert run_command(file, tmp_path / "runs", output) == [2, 2]
    assert output.read_text() == "paribus: run: batch_size is 3; a multiple of 2 processes x accumulation 1 is needed\n"
    assert not (tmp_path / "runs").exists()
    output.unlink()
    small.run_file(file, text, seed=-1)
    assert run_command(file, tmp_path / "runs", output) == [2, 2]
    assert output.read_text() == "paribus: run: seed is -1; 0 to 2^32 - 1 are allowed\n"
    output.unlink()
    small.run_file(file, text)
    with monkeypatch.context() as launcher:
        launcher.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ValueError, match="run: launched with FSDP, which splits the model; only data parallelism"):
            train(read_run(file), tmp_path / "runs", cache)
    assert run_command(file, tmp_path / "runs", output) == [0, 0]
    assert output.read_text().count("finished after 20 steps") == 1
    assert output.read_text().count("step 2/20") == 1


def fail_on(rank: str, run: Run, folder: Path, cache: Path) -> None:
    """Train with a disk that is full for one process."""
    if os.environ["RANK"] == rank:
        cache = folder.parent / "no folder"
        cache.write_text("a file is in its place")
    try:
        train(run, folder, cache)
    except Exception as problem:
        (folder.parent / f"rank{os.environ['RANK']}").write_text(type(problem).__name__)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_fails_for_one_fails_for_all(text: Path, cache: Path, tmp_path: Path, rank: str) -> None:
    assert join(start_ranks(2, fail_on, rank, make_run(text, "fails"), tmp_path / "run", cache), 60) == [0, 0]
    found = [(tmp_path / f"rank{number}").read_text() for number in range(2)]
    assert found[int(rank)] in ("NotADirectoryError", "FileExistsError")
    assert found[1 - int(rank)] == "FailedElsewhere"
    assert not (tmp_path / "run").exists()
