"""Processes killed or interrupted at any moment: what they were doing continues and ends with the same bits."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from paribus.cli import main
from paribus.training.files import read_json
from paribus.training.loop import train
from paribus.training.run import Run
from tests import small

pytestmark = pytest.mark.slow

STEPS = 80
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["paribus.training.loop", "tests.small"])
Interrupt = Callable[[int, Callable[[], object]], str]
STUDY = """
from dataclasses import replace
from pathlib import Path
from tests import small
text = Path({text!r})
study = replace(small.study(text), base=small.run(text, steps=120))
"""


@pytest.fixture(scope="module")
def run(text: Path) -> Run:
    return small.run(text, steps=STEPS)


@pytest.fixture(scope="module")
def undisturbed(run: Run, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(run, folder, cache)
    return folder


def assert_same(folder: Path, undisturbed: Path) -> None:
    results = [read_json(place / "result.json") for place in (folder, undisturbed)]
    assert small.lasting(results[0]) == small.lasting(results[1])
    assert small.journal(folder) == small.journal(undisturbed)
    assert small.same_weights(folder, undisturbed)
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"], "nothing half-written is left"


def start(run: Run, folder: Path, cache: Path, writes: int = 0) -> multiprocessing.process.BaseProcess:
    process = SERVER.Process(target=small.train_and_die, args=(run, folder, cache, writes))
    process.start()
    return process


def last_step(folder: Path) -> int:
    return max((int(path.name) for path in folder.glob("checkpoints/0*")), default=0)


def test_killed_at_every_kind_of_write(run: Run, cache: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Killed before each sync and rename of run.json, of the journal and of a checkpoint, and begun again each time."""
    seen = set()
    for writes in range(1, 21):
        process = start(run, tmp_path, cache, writes)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        seen |= {path.name for path in tmp_path.rglob("*") if path.name == ".unfinished"}
        seen.add(str(last_step(tmp_path)))
    assert ".unfinished" in seen, "some were killed while writing a checkpoint"
    assert len(seen) > 3, "some came further than others"
    process = start(run, tmp_path, cache)
    process.join()
    assert process.exitcode == 0
    assert_same(tmp_path, undisturbed)


@pytest.fixture
def study(text: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(STUDY.format(text=str(text)))
    return path


@pytest.fixture
def interrupt(study: Path, cache: Path, tmp_path: Path) -> Iterator[Interrupt]:
    """Starts the study, presses Ctrl-C once a condition holds, and returns what stderr says."""
    processes: list[subprocess.Popen[str]] = []

    def start(workers: int, condition: Callable[[], object]) -> str:
        arguments = ("study", study, "--root", tmp_path / "runs", "--workers", workers)
        process = small.paribus(*arguments, PARIBUS_CACHE=str(cache))
        processes.append(process)
        wait_for(lambda: process.poll() is not None or condition())
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        wait_for(lambda: not alive(process.pid), seconds=20)
        return errors

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_on_a_study(
    interrupt: Interrupt, study: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "runs"
    line = "\nparibus: interrupted; call the same command again to continue\n"
    assert interrupt(1, lambda: workers_of(study)) == line, "while the workers are being born"
    assert interrupt(2, lambda: list(root.glob("*/result.json"))) == line
    finished = {path: path.read_bytes() for path in root.glob("*/result.json")}
    assert 0 < len(finished) < 4
    monkeypatch.setenv("PARIBUS_CACHE", str(cache))
    assert main(["study", str(study), "--root", str(root), "--workers", "1", "--no-publish"]) == 0
    results = [path for path in root.glob("*/result.json") if path.parent.name != "tiny"]
    assert len(results) == 4
    assert all(path.read_bytes() == content for path, content in finished.items()), "none was trained again"
    assert (root / "tiny" / "report.html").is_file()


def workers_of(study: Path) -> bool:
    """Whether the process that conducts `study` has begun workers of its own."""
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (place / "cmdline").read_text().split("\0")
            if str(study) in arguments:
                return bool((place / "task" / place.name / "children").read_text().split()[1:])
    return False
