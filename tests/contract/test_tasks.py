"""Every task takes every component: what `check_tasks` does not ask of mixers and channel mixers one by one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from paribus.evaluation.contract.tasks import TRIALS, check_sides, learn
from paribus.nn.component import CHANNELS, MIXERS, RESIDUALS
from paribus.nn.residual import Residual
from paribus.nn.task import TASKS
from paribus.publish import load_published, publish_run
from paribus.training.files import read_json
from paribus.training.load import load_run
from paribus.training.loop import train
from paribus.training.run import Run
from tests import small

PREFIXES = "causal_lm with prefixes"


def test_every_task_is_tried() -> None:
    assert {trial.task["name"] for trial in TRIALS.values()} == set(TASKS.names())


@pytest.mark.parametrize("label", TRIALS)
@pytest.mark.parametrize("residual", RESIDUALS.names())
def test_every_residual_scheme_in_every_task(residual: str, label: str) -> None:
    trial = TRIALS[label]
    block = {"residual": {"name": residual}, "mixer": {"name": "gla"}, "channel": {"name": "rwkv"}}
    scheme = RESIDUALS.component(residual, Residual)
    if trial.task["name"] == "image_generation" and not scheme.reads_condition:
        with pytest.raises(ValueError, match=f"residual is '{residual}'; the task image_generation needs one that"):
            trial.make(block)
        return
    model = trial.make(block)
    unconditional = scheme.reads_condition and trial.task["name"] != "image_generation"
    learn(f"{residual}: {label}", model, trial, idle="modulation.weight" if unconditional else "no part")
    check_sides(f"{residual}: {label}", model, trial)


def one_for_each_kernel() -> list[str]:
    """The first mixer that uses a kernel which none before it does."""
    seen, chosen = set(), []
    for name in MIXERS.names():
        kernels = set(
            re.findall(r"from \.\.kernels\.(\w+) import", Path(str(MIXERS.module(name).__file__)).read_text())
        )
        if kernels - seen:
            chosen.append(name)
            seen |= kernels
    return chosen


def make_run(label: str, text: Path) -> Run:
    """A run of a hybrid that has a layer for each kernel and each channel mixer, in the task of a trial."""
    trial = TRIALS[label]
    mixers, channels = one_for_each_kernel(), CHANNELS.names()
    same = {"residual": {"name": trial.residual}}
    blocks = {
        str(place): {
            "mixer": {"name": mixers[place % len(mixers)]},
            "channel": {"name": channels[place % len(channels)]},
            **same,
        }
        for place in range(max(len(mixers), len(channels)))
    }
    settings = small.settings(text, steps=2)
    settings["model"] = {
        "hidden_size": 32,
        "num_hidden_layers": len(blocks),
        "max_position_embeddings": 32,
        "blocks": blocks,
        "layout": list(blocks),
        "task": trial.task,
        "causal": trial.task["name"] == "causal_lm",
        "image": trial.image,
    }
    if trial.image is not None:
        settings["model"] |= {"task": {**trial.task, "num_classes": 10}, "image": {**trial.image, "num_channels": 3}}
        settings["data"] = {"images": "digits", "batch_size": 4}
        settings["evaluation"] = {"points": 1, "validation_images": 4, "test_images": 8, "sampling": {"num_images": 0}}
    return Run.from_json({**settings, "objective": {"max_prefix_share": 0.5} if label == PREFIXES else {}})


@pytest.mark.slow
@pytest.mark.parametrize("label", [PREFIXES, *(name for name in TASKS.names() if name != "causal_lm")])
def test_a_model_with_every_kernel_is_trained_and_published(
    label: str, text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    run, folder = make_run(label, text), tmp_path / "run"
    train(run, folder, cache)
    assert [event["event"] for event in small.journal(folder)].count("train") == 2
    result = read_json(folder / "result.json")
    assert result["status"] == "finished" and result["metric"] in result["scores"]["test"]
    published, _ = load_published(
        publish_run(folder, tmp_path / "published")
    )  # proved by a process without the library
    trained = load_run(folder)[1].eval()
    for one, other in zip(published.parameters(), trained.parameters(), strict=True):
        assert torch.equal(one, other)
    if label == PREFIXES:
        ids, lengths = torch.arange(18).view(2, 9), torch.tensor([4, 9])
        logits = published(ids, prefix_length=lengths).logits
        torch.testing.assert_close(logits, trained(ids, prefix_length=lengths).logits)
        assert not torch.allclose(logits, published(ids).logits)
