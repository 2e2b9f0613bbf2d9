"""Training on prefixes: how long they are, what is a target, what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from paribus.data.batches import Batch
from paribus.evaluation.cost import training_flops
from paribus.nn.loss import IGNORE
from paribus.training.files import read_json
from paribus.training.loop import train
from paribus.training.model import build_model, check_model
from paribus.training.run import Run
from paribus.training.task import make_task
from tests import small


def make(text: Path, share: float = 0.5, **values: Any) -> Run:
    settings = small.settings(text, steps=3, mixer="gla", **values)
    settings["model"] |= {"task": {"name": "causal_lm", "prefix": True}}
    return Run.from_json({**settings, "objective": {"max_prefix_share": share}})


def test_lengths_are_spread_and_decided_by_seed_and_step(text: Path) -> None:
    task = make_task(make(text))
    lengths = torch.stack([task.prefix_lengths(64, step) for step in range(40)])
    assert lengths.dtype == torch.int64
    assert lengths.unique().tolist() == list(range(17)), "0 to half of 32 tokens"
    assert abs(lengths.double().mean() - 8) < 0.4
    assert torch.equal(lengths[7], task.prefix_lengths(64, 7))
    assert not torch.equal(lengths[7], lengths[8])
    run = make(text)
    other = make_task(replace(run, data=replace(run.data, seed=1)))
    assert not torch.equal(lengths[7], other.prefix_lengths(64, 7))


def test_targets_are_behind_the_prefix(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(make(text))
    monkeypatch.setattr(type(task), "prefix_lengths", lambda *_: torch.tensor([0, 2, 3]))
    tokens = torch.arange(27).view(3, 9) + 1
    segments = torch.tensor([[1] * 9, [1] * 9, [1, 1, 1, 1, 1, 2, 2, 3, 3]])
    for marks in (None, segments):
        found = task.inputs(Batch(tokens, marks, {}), 0)
        targets = tokens[:, 1:].clone()
        targets[1, :1] = IGNORE  # the first token is no target anyway; the second is in the prefix
        targets[2, :2] = IGNORE
        if marks is not None:
            targets[2, 4:] = IGNORE  # all of two short documents
        assert torch.equal(found.tensors["targets"], targets)
        assert found.num_targets.tolist() == (targets != IGNORE).sum(1).tolist()
        assert found.tensors["prefix_length"].tolist() == [0, 2, 3]
        assert torch.equal(found.tensors["input_ids"], tokens[:, :-1])


def test_without_a_share_nothing_is_different(text: Path) -> None:
    task = make_task(make(text, share=0.0))
    found = task.inputs(Batch(torch.arange(18).view(2, 9), None, {}), 0)
    assert found.tensors.keys() == {"input_ids", "targets", "attention_mask"}
    assert task.example().keys() == {"input_ids", "targets"}


def test_what_does_not_fit_is_refused(text: Path) -> None:
    with pytest.raises(ValueError, match=r"max_prefix_share is 1\.0; 0 or more and less than 1 is needed"):
        make_task(make(text, share=1.0))
    plain = small.settings(text)
    run = Run.from_json({**plain, "objective": {"max_prefix_share": 0.5}})
    with pytest.raises(ValueError, match=r"max_prefix_share is 0\.5, which needs the model's task\.prefix true"):
        make_task(run)
    wrong = {**plain["model"], "task": {"name": "causal_lm", "prefx": True}}
    with pytest.raises(ValueError, match=r"prefx.*prefix"):
        check_model(Run.from_json({**plain, "model": wrong}))


def test_a_prefix_costs_the_mixer_twice(text: Path) -> None:
    flops = [
        training_flops(build_model(run), make_task(run).example(), make_task(run).arguments)
        for run in (make(text, share=0.0), make(text))
    ]
    assert flops[0] < flops[1] < 2 * flops[0]


def test_a_run_is_judged_without_prefixes(text: Path, cache: Path, tmp_path: Path) -> None:
    run = make(text, accumulation=2, gradient_checkpointing=True)
    train(run, tmp_path / "run", cache)
    assert read_json(tmp_path / "run" / "result.json")["metric"] == "bits_per_byte"
    losses = [event["loss"] for event in small.journal(tmp_path / "run") if event["event"] == "train"]
    task, model = make_task(run), build_model(run).train()
    inputs = task.inputs(task.batches(cache).batch(0), 0)
    assert int(inputs.tensors["prefix_length"].max()) > 0
    assert losses[0] == pytest.approx(model(**inputs.tensors, **task.arguments).losses["cross_entropy"].item())
