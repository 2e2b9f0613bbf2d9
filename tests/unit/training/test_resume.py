"""Interrupted and continued, a run ends with the same bits as one that was left alone, whatever it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paribus.optim.schedule import SCHEDULES
from paribus.training import loop
from paribus.training.files import read_json
from paribus.training.loop import Tick, train
from paribus.training.run import Run, with_values
from tests import small
from tests.small import journal, lasting
from tests.unit.training.test_step import fp16_on_the_cpu

STEPS = 7
VARIATIONS: dict[str, dict[str, Any]] = {
    **{name: {"schedule.name": name} for name in SCHEDULES},
    "dropout": {"model.blocks.main.dropout": 0.1, "accumulation": 2, "precision": "bf16"},
    "average": {"ema_decay": 0.8, "z_loss": 0.001, "optimizer.clip_adaptive": 0.1},
    "experts": {"model.blocks.main.channel.name": "mixture_of_experts"},
    "schedule-free": {"optimizer.name": "schedulefreeadamw"},
    "factored": {"optimizer.name": "adafactor"},
    "mixed": {"optimizer.name": "muon", "model.blocks.main.dropout": 0.1},
    "checkpointed": {"gradient_checkpointing": True, "model.blocks.main.dropout": 0.1},
}


class Interrupted(Exception):
    """In place of a killed process."""


def interrupt(tick: Tick) -> None:
    if tick.step == 4:
        raise Interrupted


def files(folder: Path) -> dict[str, bytes]:
    """The tensors of the last checkpoint, as bytes."""
    return {path.name: path.read_bytes() for path in (folder / "checkpoints" / f"{STEPS:08d}").glob("*.safetensors")}


def assert_resumes(run: Run, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    expected = train(run, tmp_path / "alone", cache)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)  # so that saving is seen to change nothing
    with pytest.raises(Interrupted):
        train(run, tmp_path / "resumed", cache, watch=interrupt)
    steps = sorted(path.name for path in (tmp_path / "resumed" / "checkpoints").iterdir())
    assert steps == ["00000002", "00000003"]
    torch.rand(3)
    found = train(run, tmp_path / "resumed", cache, watch=lambda tick: None)
    assert lasting(found) == lasting(expected)
    assert journal(tmp_path / "resumed") == journal(tmp_path / "alone")
    assert files(tmp_path / "resumed") == files(tmp_path / "alone")
    return expected


@pytest.mark.parametrize("name", VARIATIONS)
def test_the_same_bits(name: str, text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_values(small.run(text, steps=STEPS), {"evaluation.points": 3, **VARIATIONS[name]})
    result = assert_resumes(run, tmp_path, cache, monkeypatch)
    assert result["status"] == "finished"
    assert ("evaluated.safetensors" in files(tmp_path / "alone")) == (name in ("average", "schedule-free"))


def test_the_scale_of_the_loss_continues(
    text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "check_engine", lambda run: None)
    monkeypatch.setattr(loop, "make_accelerator", lambda run, *_: fp16_on_the_cpu(run, 2.0**40, 2.0**-2))
    run = small.run(text, steps=STEPS, precision="fp16")
    result = assert_resumes(run, tmp_path, cache, monkeypatch)
    assert result["stability"]["skipped_steps"] > 0
    states = [
        read_json(tmp_path / name / "checkpoints" / f"{STEPS:08d}" / "state.json") for name in ("alone", "resumed")
    ]
    assert states[0]["scaler"] == states[1]["scaler"]
    assert states[0]["scaler"]["scale"] < 2.0**40
    assert states[0]["torch_rng"] == states[1]["torch_rng"]
