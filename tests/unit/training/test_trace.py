"""Traces and trackers: they show what happens, and change none of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from paribus.training import trackers
from paribus.training.loop import train
from paribus.training.run import Run
from paribus.training.trace import TracedSteps
from tests import small

STEPS = 6


@pytest.fixture(scope="module")
def run(text: Path) -> Run:
    return small.run(text, steps=STEPS)


@pytest.fixture(scope="module")
def plain(run: Run, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    train(run, folder, cache)
    return folder


@pytest.fixture(scope="module")
def watched(run: Run, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    train(run, folder, cache, trace="3-4", trackers=["tensorboard"])
    return folder


def test_a_trace_changes_no_bit(plain: Path, watched: Path) -> None:
    assert small.same_weights(plain, watched)
    assert small.journal(plain) == small.journal(watched)


def test_a_trace_shows_the_steps_asked_for(watched: Path) -> None:
    (path,) = (watched / "trace").iterdir()
    assert path.name == "steps_3-4.rank0.pt.trace.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    updates = [event for event in events if event.get("name", "").startswith("Optimizer.step")]
    assert len(updates) == 2
    assert any(event.get("name") == "aten::mm" for event in events)


def test_tensorboard_gets_the_numbers_of_the_journal(watched: Path) -> None:
    events = EventAccumulator(str(watched / "trackers" / "small")).Reload()
    journal = small.journal(watched)
    for name, event in (("loss", "train"), ("lr", "train"), ("gradient_norm", "train"), ("score", "evaluate")):
        expected = {found["step"]: found[name] for found in journal if found["event"] == event}
        found = {scalar.step: scalar.value for scalar in events.Scalars(name)}
        assert found == pytest.approx(expected, rel=1e-6), name
        assert found, name


def test_without_either_nothing_is_written(plain: Path) -> None:
    assert not {"trace", "trackers"} & {path.name for path in plain.iterdir()}


@pytest.mark.parametrize(
    ("text_of_steps", "message"),
    [
        ("ten", "trace is 'ten'; the form is FIRST-LAST, such as 10-15"),
        ("5-4", "trace is '5-4'; steps count from 1, and the first is not after the last"),
        ("0-4", "trace is '0-4'; steps count from 1"),
        ("5-7", "trace is 5-7; this run has 6 steps"),
    ],
)
def test_steps_that_cannot_be(run: Run, cache: Path, tmp_path: Path, text_of_steps: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(run, tmp_path / "run", cache, trace=text_of_steps)


def test_steps_that_are_done(run: Run, cache: Path, plain: Path) -> None:
    assert TracedSteps.parse("7") == TracedSteps(7, 7)
    with pytest.raises(ValueError, match="trace is 2-3; 2 of this run's 6 steps are done"):
        TracedSteps(2, 3).check(done=2, total=STEPS)
    with pytest.raises(ValueError, match="trace is '1-2'; this run is finished, all 6 steps are done"):
        train(run, plain, cache, trace="1-2")


def test_trackers_that_are_not_there(run: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"unknown tracker 'tensorbord'; .*'tensorboard'"):
        train(run, tmp_path / "run", cache, trackers=["tensorbord"])
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    for name in LOGGER_TYPE_TO_CLASS:
        with pytest.raises(ValueError, match=f"tracker '{name}' is not installed; run: pip install "):
            train(run, tmp_path / "run", cache, trackers=[name])
    assert not list(tmp_path.iterdir())
