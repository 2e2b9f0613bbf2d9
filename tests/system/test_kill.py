"""Twenty times killed, at any moment from the first import to the last checkpoint; the end has the same bits."""

from __future__ import annotations

import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from paribus.training import loop
from paribus.training.files import read_json
from paribus.training.loop import train
from paribus.training.run import Run
from tests import small
from tests.ranks import SERVER

pytestmark = pytest.mark.slow

STEPS, KILLS = 200, 20
SECONDS_PER_STEP = 0.02
"""Of sleep in each step of what will be killed, so that all kills together come before the end on any machine."""


@pytest.fixture(scope="module")
def run(text: Path) -> Run:
    """All that a checkpoint has to keep: the generator's state, the moving average, the optimizer's, the journal's."""
    block = {"mixer": {"name": "attention"}, "channel": {"name": "glu"}, "dropout": 0.1}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 64}
    return small.run(text, steps=STEPS, model={**sizes, "blocks": {"main": block}}, accumulation=2, ema_decay=0.9)


def train_slowly(run: Run, folder: Path, cache: Path, seconds_per_step: float) -> None:
    """Train with a checkpoint at every step."""
    loop.CHECKPOINT_SECONDS = 0.0
    loop._LOGGED_STEPS = STEPS
    train(run, folder, cache, watch=lambda tick: time.sleep(seconds_per_step))


def start(run: Run, place: Path, seconds_per_step: float) -> BaseProcess:
    """In `place`, which has a cache of its own, so that preparing the data is killed as well."""
    process = SERVER.Process(target=train_slowly, args=(run, place / "run", place / "cache", seconds_per_step))
    process.start()
    return process


def last_step(place: Path) -> int:
    return max((int(path.name) for path in place.glob("run/checkpoints/0*")), default=0)


def kill_once(process: BaseProcess, place: Path, draw: random.Random, soon: bool) -> None:
    """Kill it `soon` after its start, or else soon after it has got further than those before it."""
    begun_at, end = last_step(place), time.monotonic() + 120
    while not soon and process.exitcode is None and last_step(place) <= begun_at:
        assert time.monotonic() < end, "it trains no step"
        time.sleep(0.01)
    process.join(draw.uniform(0, 0.2 if soon else 0.1))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"


def content(place: Path) -> dict[str, bytes | None]:
    """Every file by its path; what the clock or the memory decides has no bytes here."""
    passing = ("result.json", "state.json", "run.json", "journal.jsonl", ".lock")
    return {
        str(path.relative_to(place)): None if path.name in passing else path.read_bytes()
        for path in place.rglob("*")
        if path.is_file()
    }


def test_killed_twenty_times(run: Run, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    draw, begun_at = random.Random(20), set()
    for number in range(KILLS):
        begun_at.add(last_step(killed))
        kill_once(start(run, killed, SECONDS_PER_STEP), killed, draw, soon=number % 2 == 0)
    assert len(begun_at) > KILLS // 3, "they got further and further"
    for place in (killed, whole):
        process = start(run, place, 0.0)
        process.join()
        assert process.exitcode == 0
    assert content(killed) == content(whole), "no bit of a weight differs, no file is left over, none is lost"
    assert small.journal(killed / "run") == small.journal(whole / "run")
    for name in ("result.json", f"checkpoints/{STEPS:08d}/state.json"):
        facts = [read_json(place / "run" / name) for place in (killed, whole)]
        for fact in facts:
            fact.pop("elapsed_seconds", None)
        assert small.lasting(facts[0]) == small.lasting(facts[1])
    shutil.rmtree(tmp_path)
