"""Runs on a GPU: they learn what they learn on the CPU, continue to the bit, compile, and are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paribus.nn.task import TASKS
from paribus.publish import load_any, publish_run
from paribus.training.loop import train
from paribus.training.run import Run, with_values
from tests import small
from tests.ranks import join, start_ranks
from tests.unit.training.test_resume import STEPS, assert_resumes

pytestmark = pytest.mark.gpu

MIXERS = ("attention", "gla", "gated_delta_net", "rg_lru", "hyena", "mamba", "rwkv7", "mlp_mixer")
APART = {"fp32": 2e-3, "bf16": 0.1, "fp16": 0.05}
"""How far two curves of the loss may be apart, in nats a token."""
VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"model.blocks.main.dropout": 0.1, "accumulation": 2, "precision": "bf16"},
    "average": {"ema_decay": 0.8, "z_loss": 0.001, "optimizer.clip_adaptive": 0.1},
    "scaled": {"precision": "fp16", "model.blocks.main.dropout": 0.1},
    "checkpointed": {"gradient_checkpointing": True, "model.blocks.main.dropout": 0.1},
    "reversible": {"model.blocks.main.residual": {"name": "reversible"}, "model.blocks.main.dropout": 0.1},
    "muon": {"optimizer.name": "muon"},
    "schedule-free": {"optimizer.name": "schedulefreeadamw"},
    "experts": {"model.blocks.main.channel.name": "mixture_of_experts"},
}


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor([event["loss"] for event in small.journal(folder) if event["event"] == "train"])


def on(device: torch.device, run: Run, **values: Any) -> Run:
    return with_values(run, {"device": device.type, **values})


@pytest.mark.parametrize("precision", APART)
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_run_learns_what_it_learns_on_the_cpu(
    mixer: str, precision: str, text: Path, cache: Path, tmp_path: Path, device: torch.device
) -> None:
    run = small.run(text, mixer=mixer)
    here = train(run, tmp_path / "cpu", cache)
    there = train(on(device, run, precision=precision), tmp_path / "gpu", cache)
    assert there["status"] == "finished"
    assert [there[key] for key in ("batches_sha256", "flops", "parameters", "state_bytes")] == [
        here[key] for key in ("batches_sha256", "flops", "parameters", "state_bytes")
    ]
    assert there["peak_memory_bytes"] > 0
    alike = 1 + (0 if there["stability"]["skipped_steps"] else len(losses(tmp_path / "cpu")))
    apart = (losses(tmp_path / "gpu") - losses(tmp_path / "cpu"))[:alike].abs().max().item()
    assert apart < APART[precision], f"{apart:.2e} nats"
    if precision != "fp16":  # its scale finds its place by skipping the first updates
        found, expected = (result["scores"]["test"]["bits_per_byte"] for result in (there, here))
        assert found == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("mixer", ["attention", "gla", "hyena"])
@pytest.mark.parametrize("variation", VARIATIONS)
def test_an_interrupted_run_ends_with_the_same_bits(
    mixer: str,
    variation: str,
    text: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
) -> None:
    run = on(device, small.run(text, steps=STEPS, mixer=mixer), **VARIATIONS[variation])
    assert_resumes(run, tmp_path, cache, monkeypatch)


def run_of(task: str, text: Path, device: torch.device) -> Run:
    """A small run of `task`."""
    if task == "causal_lm":
        return small.run(text, device=device.type)
    residual = {"name": "adaln_zero" if task == "image_generation" else "pre"}
    block = {"mixer": {"name": "gla"}, "channel": {"name": "glu"}, "residual": residual}
    model = {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64, "blocks": {"main": block}}
    model |= {"causal": False, "task": {"name": task}}
    if task == "masked_lm":
        return small.run(text, model=model, device=device.type)
    image = {"size": 8, "patch_size": 2, "num_channels": 3, "scan": "alternate"}
    few = {"points": 1, "validation_images": 20, "test_images": 20}
    data = {"images": "digits", "batch_size": 16, "crop": 1}
    values = {"data": data, "evaluation": few, "device": device.type}
    return small.run(text, model={**model, "image": image}, **values)


@pytest.mark.parametrize("task", TASKS.names())
def test_every_task_is_trained_and_published(
    task: str, text: Path, cache: Path, tmp_path: Path, device: torch.device
) -> None:
    run = run_of(task, text, device)
    here = train(with_values(run, {"device": "cpu"}), tmp_path / "cpu", cache)
    there = train(run, tmp_path / "gpu", cache)
    assert (losses(tmp_path / "gpu") - losses(tmp_path / "cpu")).abs().max() < APART["fp32"]
    # The share of 20 images misclassified is a step function of what the two devices compute alike.
    metric = "cross_entropy" if task == "image_classification" else here["metric"]
    assert there["scores"]["test"][metric] == pytest.approx(here["scores"]["test"][metric], rel=0.02)
    publish_run(tmp_path / "gpu", tmp_path / "out")
    model, _ = load_any(tmp_path / "out")
    assert sum(parameter.numel() for parameter in model.parameters()) == there["parameters"]


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # the compiler's advice; runs in fp32 are exact
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mixer", ["attention", "gla", "gated_delta_net"])
def test_a_compiled_run_learns_the_same(
    mixer: str, precision: str, text: Path, cache: Path, tmp_path: Path, device: torch.device
) -> None:
    run = on(device, small.run(text, steps=10, mixer=mixer), precision=precision)
    train(run, tmp_path / "plain", cache)
    train(with_values(run, {"compile": True}), tmp_path / "compiled", cache)
    apart = (losses(tmp_path / "plain") - losses(tmp_path / "compiled")).abs().max().item()
    assert apart < APART[precision], f"{apart:.2e} nats"


def train_on_the_gpu(runs: list[Run], root: Path, cache: Path) -> None:
    for run in runs:
        train(run, root / run.name, cache)


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_one_process_of_a_launcher_trains_as_none_does(
    parallel: str, text: Path, cache: Path, tmp_path: Path, device: torch.device
) -> None:
    runs = [on(device, small.run(text, steps=8, mixer=mixer, name=mixer), parallel=parallel) for mixer in MIXERS[:2]]
    train_on_the_gpu(runs, tmp_path / "alone", cache)
    assert join(start_ranks(1, train_on_the_gpu, runs, tmp_path / "launched", cache)) == [0]
    for run in runs:
        torch.testing.assert_close(
            losses(tmp_path / "launched" / run.name), losses(tmp_path / "alone" / run.name), rtol=1e-5, atol=0
        )


def test_seconds_are_those_of_the_gpu(text: Path, cache: Path, tmp_path: Path, device: torch.device) -> None:
    """A budget in seconds becomes steps by timing a few; a GPU that is not waited for would seem to need no time."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 8, "max_position_embeddings": 1024}
    blocks = {"main": {"mixer": {"name": "attention"}, "channel": {"name": "glu"}}}
    data = {"corpora": {str(text): 1.0}, "sequence_length": 1024, "batch_size": 16}
    run = small.run(text, model={**sizes, "blocks": blocks}, data=data, budget={"seconds": 3.0}, device=device.type)
    result = train(run, tmp_path / "run", cache)
    assert 1.5 < result["seconds"] < 9
