"""Run folders: found, locked, stale, of other settings or data; and which sources a run knows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from paribus.training import sources
from paribus.training.files import read_json, write_json
from paribus.training.folder import (
    differences,
    find_run,
    locked,
    open_record,
    read_result,
    refuse_other_settings,
)
from paribus.training.run import Run, with_values
from paribus.training.shelf import compare_runs, list_runs, remove_run
from paribus.training.sources import changed_sources, source_hashes
from tests import small

MANIFESTS: dict[str, Any] = {"corpora": {}}


@pytest.fixture
def run(text: Path) -> Run:
    return small.run(text)


def opened(root: Path, run: Run) -> Path:
    folder = find_run(root, run)
    folder.mkdir(parents=True, exist_ok=True)
    open_record(folder, run, MANIFESTS, accept_stale=False)
    return folder


def edit(folder: Path, **values: Any) -> None:
    record = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", {**record, **values})


def test_a_training_is_found_under_any_name(tmp_path: Path, run: Run) -> None:
    folder = opened(tmp_path, run)
    assert folder.name == f"small-{run.fingerprint()[:8]}"
    assert find_run(tmp_path, with_values(run, {"name": "other"})) == folder
    assert find_run(tmp_path, with_values(run, {"seed": 5})) != folder


def test_a_name_has_one_training(tmp_path: Path, run: Run) -> None:
    opened(tmp_path, run)
    refuse_other_settings(tmp_path, run)
    other = with_values(run, {"optimizer.lr": 0.5})
    with pytest.raises(ValueError, match=r"run name 'small' is taken by .*optimizer\.lr: 0\.003 → 0\.5"):
        refuse_other_settings(tmp_path, other)
    refuse_other_settings(tmp_path, with_values(other, {"name": "other"}))


def test_a_record_is_written_once(tmp_path: Path, run: Run) -> None:
    folder = opened(tmp_path, run)
    content = (folder / "run.json").read_bytes()
    assert open_record(folder, run, MANIFESTS, accept_stale=False) == json.loads(content)
    assert (folder / "run.json").read_bytes() == content
    assert Run.from_json(json.loads(content)["run"]) == run


def test_what_does_not_fit_the_record_is_refused(tmp_path: Path, run: Run) -> None:
    folder = opened(tmp_path, run)
    with pytest.raises(ValueError, match="other settings"):
        open_record(folder, with_values(run, {"seed": 5}), MANIFESTS, accept_stale=False)
    with pytest.raises(ValueError, match="trained on other data"):
        open_record(folder, run, {"corpora": {"a": 1}}, accept_stale=True)
    edit(folder, sources={**source_hashes(run), "nn/block.py": "0", "nn/gone.py": "0"})
    with pytest.raises(ValueError, match=r"is stale: nn/block\.py, nn/gone\.py changed since"):
        open_record(folder, run, MANIFESTS, accept_stale=False)
    open_record(folder, run, MANIFESTS, accept_stale=True)


@pytest.mark.parametrize("content", ['{"run": {', "", "{}", "[1]"])
def test_a_damaged_record_is_not_written_anew(tmp_path: Path, run: Run, content: str) -> None:
    folder = opened(tmp_path, run)
    (folder / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"is not a run: it has no readable run\.json"):
        open_record(folder, run, MANIFESTS, accept_stale=True)
    assert (folder / "run.json").read_text() == content
    assert list(list_runs(tmp_path)) == [f"{folder.name:<56} unreadable run.json"]
    refuse_other_settings(tmp_path, with_values(run, {"seed": 9}))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            try:
                with locked(tmp_path):
                    os._exit(0)
            except ValueError as problem:
                os._exit(3 if f"being trained by process {os.getppid()}" in str(problem) else 4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    with locked(tmp_path):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ['{"status": "fin', "", "{}", "[]", "\xff"])
def test_a_damaged_result_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_bytes(content.encode("latin-1"))
    assert read_result(tmp_path) is None


def test_differences_are_leaves() -> None:
    one, other = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": {"f": 3}}
    assert differences(one, other) == ["a.c: [1] → [2]", "d: 2 → None", "e: None → {'f': 3}"]


def test_writing_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    monkeypatch.setattr("paribus.training.files.sync_file", lambda path: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_json(path, {"new": True})
    assert read_json(path) == {"old": True}
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_sources_are_those_that_the_run_uses(run: Run) -> None:
    names = set(source_hashes(run))
    assert {"nn/mixers/attention.py", "nn/channels/glu.py", "nn/kernels/attention.py", "training/loop.py"} <= names
    assert not {"nn/mixers/gla.py", "nn/channels/mlp.py", "data/corpora/wiki.py", "cli.py"} & names
    other = with_values(run, {"model.blocks.main.mixer.name": "gla", "data.corpora": {"wiki": 1.0}})
    assert {"nn/mixers/gla.py", "data/corpora/wiki.py"} <= set(source_hashes(other))


def test_a_users_file_is_a_source(tmp_path: Path, text: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_bytes((sources._PACKAGE / "nn/mixers/linear.py").read_bytes().replace(b"from ..", b"from paribus.nn."))
    run = small.run(text, mixer=str(path))
    recorded = source_hashes(run)
    assert str(path) in recorded
    assert changed_sources(recorded, run) == []
    path.write_text(path.read_text() + "\n")
    assert changed_sources(recorded, run) == [str(path)]


def test_the_shelf(tmp_path: Path, run: Run) -> None:
    one, two = opened(tmp_path, run), opened(tmp_path, with_values(run, {"name": "two", "optimizer.lr": 0.5}))
    assert all("unfinished, 0 steps" in line for line in list_runs(tmp_path))
    assert "  optimizer.lr: 0.003 → 0.5" in list(compare_runs([one, two]))
    edit(two, sources={}, manifests={"corpora": {"a": 1}})
    assert sum("[stale: " in line for line in list_runs(tmp_path)) == 1
    with pytest.raises(ValueError, match="trained on different data"):
        list(compare_runs([one, two]))
    with locked(two), pytest.raises(ValueError, match="is being trained"):
        remove_run(two)
    remove_run(two)
    assert not two.exists()
    with pytest.raises(ValueError, match="is not a run"):
        remove_run(tmp_path)
