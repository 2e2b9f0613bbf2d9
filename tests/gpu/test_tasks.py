"""The models of all tasks give on the GPU what they give on the CPU, whatever reads their tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paribus.evaluation.contract.subjects import shake
from paribus.evaluation.cost import training_flops
from paribus.nn.component import MIXERS
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.loss import IGNORE
from paribus.nn.task import TASKS, TaskModel, task_model
from tests.gpu.both import CPU, same_in_float64

pytestmark = pytest.mark.gpu

SIZE, PATCH, CLASSES, VOCABULARY, T = 8, 2, 5, 61, 16
SCANS = ("raster", "alternate", "cross")


def make(task: str, mixer: str, scan: str = "raster") -> TaskModel:
    """A model of `task` with two layers; of images of 4 x 4 patches where it reads images."""
    residual = {"name": "adaln_zero" if task == "image_generation" else "pre"}
    block = {"mixer": {"name": mixer}, "channel": {"name": "glu"}, "residual": residual}
    of_images = task.startswith("image")
    settings = {"num_classes": CLASSES} if of_images else {"mask_token": 60} if task == "masked_lm" else {}
    image = {"size": SIZE, "patch_size": PATCH, "num_channels": 3, "scan": scan} if of_images else None
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": T}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = ParibusConfig(
        **sizes,  # type: ignore[arg-type]
        **special,
        blocks={"main": block},
        task={"name": task, **settings},
        image=image,
        causal=task == "causal_lm",
    )
    model = task_model(config)(config)
    initialize(model, seed=0)
    shake(model)
    return model.train()


def batch(task: str) -> dict[str, Tensor]:
    """Arguments of the model of `task`, with targets."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (3, T), generator=draw)
    pixels, velocity = (torch.rand(3, 3, SIZE, SIZE, generator=draw, dtype=torch.float64) * 2 - 1 for _ in range(2))
    classes, times = torch.tensor([0, 3, CLASSES]), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    return {
        "causal_lm": {"input_ids": ids, "targets": ids.roll(-1, 1)},
        "masked_lm": {"input_ids": ids, "labels": ids.masked_fill(ids % 4 != 0, IGNORE)},
        "image_classification": {"pixel_values": pixels, "labels": classes.clamp(max=CLASSES - 1)},
        "image_generation": {"pixel_values": pixels, "times": times, "classes": classes, "velocity": velocity},
    }[task]


def learn(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """The loss and what the model predicts."""
    output = model(**inputs)
    return output.loss, output.velocity if "velocity" in inputs else output.logits


@pytest.mark.parametrize("mixer", MIXERS.names())
@pytest.mark.parametrize("task", TASKS.names())
def test_the_gpu_agrees_with_the_cpu(task: str, mixer: str, device: torch.device) -> None:
    same_in_float64(f"{task}: {mixer}", make(task, mixer), batch(task), learn, device)


@pytest.mark.parametrize("scan", SCANS[1:])
@pytest.mark.parametrize("mixer", ["attention", "gla", "hyena", "mamba", "rwkv7"])
@pytest.mark.parametrize("task", [name for name in TASKS.names() if name.startswith("image")])
def test_scans(task: str, mixer: str, scan: str, device: torch.device) -> None:
    same_in_float64(f"{task}: {mixer}: {scan}", make(task, mixer, scan), batch(task), learn, device)


@pytest.mark.parametrize("mixer", MIXERS.names())
@pytest.mark.parametrize("task", TASKS.names())
def test_flops_are_counted_alike(task: str, mixer: str, device: torch.device) -> None:
    """Or arms with equal FLOPs would get other budgets on another machine."""
    given = {name: x.float() if x.is_floating_point() else x for name, x in batch(task).items()}
    here, there = (training_flops(make(task, mixer).to(place), given, {}) for place in (CPU, device))
    assert here == pytest.approx(there, rel=0.02)  # a solver that ends when it is done may take one iteration less
