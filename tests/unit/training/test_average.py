"""Weights that are evaluated in place of those that are trained: moving averages, schedule-free optimizers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from paribus.optim.optimizer import Optimizer, make_optimizer
from paribus.optim.registry import OPTIMIZERS
from paribus.training.average import Average, averages_itself, evaluated_weights
from paribus.training.load import load_run
from paribus.training.loop import train
from paribus.training.run import with_values
from tests import small

OWN = [name for name in OPTIMIZERS if averages_itself(make_optimizer(Optimizer(name), nn.Linear(2, 2)))]


def test_the_average_is_the_weighted_mean_of_what_was_seen() -> None:
    model, decay = nn.Linear(3, 2), 0.8
    average, seen = Average(model, decay), []
    for step in range(1, 8):
        with torch.no_grad():
            model.weight.normal_()
        seen.append(model.weight.detach().double())
        average.update(model, step)
        weights = torch.tensor([decay ** (step - index) for index in range(1, step + 1)], dtype=torch.float64)
        expected = (torch.stack(seen) * weights[:, None, None]).sum(0) / weights.sum()
        torch.testing.assert_close(average.tensors["weight"].double(), expected, rtol=1e-6, atol=1e-6)


def test_the_average_is_in_float32() -> None:
    model = nn.Linear(3, 2).bfloat16()
    average = Average(model, 0.5)
    average.update(model, 1)
    assert average.tensors["weight"].dtype == torch.float32


def test_some_optimizers_average_by_themselves() -> None:
    assert "schedulefreeadamw" in OWN
    assert "adamw" not in OWN


@pytest.mark.parametrize("name", [*OWN, "ema"])
def test_trained_weights_come_back_to_the_bit(name: str) -> None:
    model = nn.Linear(8, 8)
    optimizer = make_optimizer(Optimizer("adamw" if name == "ema" else name, lr=0.1), model)
    average = Average(model, 0.9) if name == "ema" else None
    for step in range(1, 13):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(model, step)
    trained = model.weight.detach().clone()
    with evaluated_weights(model, optimizer, average) as differ:
        assert differ
        evaluated = model.weight.detach().clone()
    assert torch.equal(model.weight, trained)
    assert not torch.equal(evaluated, trained)
    with evaluated_weights(model, optimizer, average):
        assert torch.equal(model.weight, evaluated), "looking twice changes nothing"
    assert torch.equal(model.weight, trained)


@pytest.mark.parametrize("values", [{"ema_decay": 0.9}, {"optimizer.name": "schedulefreeadamw"}])
def test_what_is_measured_is_what_is_loaded(text: Path, cache: Path, tmp_path: Path, values: dict[str, object]) -> None:
    plain = {"optimizer.name": values["optimizer.name"]} if "optimizer.name" in values else {}
    run = with_values(small.run(text, steps=8), values)
    result = train(run, tmp_path / "run", cache)
    folder = tmp_path / "run" / "checkpoints" / "00000008"
    trained, evaluated = (load_file(folder / f"{name}.safetensors") for name in ("model", "evaluated"))
    loaded = load_run(tmp_path / "run")[1].state_dict()
    assert trained.keys() == evaluated.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in evaluated.items())
    assert not all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())
    if not plain:
        without = train(with_values(run, {"ema_decay": 0.0}), tmp_path / "without", cache)
        weights = load_file(tmp_path / "without" / "checkpoints" / "00000008" / "model.safetensors")
        assert all(torch.equal(weights[name], tensor) for name, tensor in trained.items()), "training is the same"
        assert without["scores"] != result["scores"]
        assert not (tmp_path / "without" / "checkpoints" / "00000008" / "evaluated.safetensors").exists()


def test_two_averages_at_once_are_refused(text: Path, cache: Path, tmp_path: Path) -> None:
    run = with_values(small.run(text), {"ema_decay": 0.9, "optimizer.name": "schedulefreeadamw"})
    with pytest.raises(ValueError, match="'schedulefreeadamw' averages the weights by itself; ema_decay 0 is needed"):
        train(run, tmp_path / "run", cache)
    assert not (tmp_path / "run").exists()
