"""Image generation as it is trained: what is drawn for a batch, learning, a batch in pieces, resuming."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.data.images.batches import ImageBatch
from paribus.evaluation.flow_loss import flow_losses
from paribus.training.load import load_run
from paribus.training.loop import train
from paribus.training.run import Run
from paribus.training.task import Inputs, make_task
from tests.small import same_weights
from tests.unit.training.test_resume import STEPS, assert_resumes

TIMES = ("uniform", "logit_normal")


def settings(**changes: Any) -> dict[str, Any]:
    """The JSON of a run on digits of 8 x 8 pixels; nobody looks at samples."""
    block = {"mixer": {"name": "attention"}, "channel": {"name": "glu"}, "residual": {"name": "adaln_zero"}}
    model = {
        "task": {"name": "image_generation", "num_classes": 10},
        "image": {"size": 8, "patch_size": 4, "num_channels": 1},
        "causal": False,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "position": "learned",
        "blocks": {"main": block},
    }
    return {
        "name": "digits",
        "model": model,
        "data": {"images": "digits", "batch_size": 32},
        "budget": {"steps": STEPS},
        "optimizer": {"lr": 1e-2},
        "evaluation": {"points": 3, "validation_images": 60, "test_images": 100, "sampling": {"num_images": 0}},
        **changes,
    }


def make(**changes: Any) -> Run:
    return Run.from_json(settings(**changes))


def drawn(step: int = 0, rows: int = 2000, seed: int = 0, **objective: Any) -> tuple[ImageBatch, Inputs]:
    """What is made of a batch of plain images."""
    run = make(objective=objective, data={"images": "digits", "batch_size": rows, "seed": seed})
    pixels = torch.linspace(-1, 1, rows)[:, None, None, None].expand(-1, 1, 8, 8)
    batch = ImageBatch(pixels, torch.arange(rows) % 10, {"digits": rows})
    return batch, make_task(run).inputs(batch, step)


def column(values: Tensor | None) -> Tensor:
    assert values is not None
    return values[:, None, None, None]


@pytest.mark.parametrize("times", TIMES)
def test_images_are_on_a_straight_way_from_normal_noise(times: str) -> None:
    batch, inputs = drawn(times=times)
    given = inputs.tensors
    x, v, t = given["pixel_values"], given["velocity"], column(given["times"])
    assert x is not None and v is not None
    noise = batch.pixels - v
    torch.testing.assert_close(x, (1 - t) * noise + t * batch.pixels)
    torch.testing.assert_close(x + (1 - t) * v, batch.pixels.expand_as(x), rtol=1e-4, atol=1e-5)
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert inputs.num_targets.tolist() == [1] * 2000


def test_times_are_drawn_as_the_objective_says() -> None:
    uniform, logit_normal = (drawn(times=times)[1].tensors["times"] for times in TIMES)
    assert uniform is not None and logit_normal is not None
    for share in (0.1, 0.5, 0.9):
        assert float((uniform < share).double().mean()) == pytest.approx(share, abs=0.03)
    logits = torch.logit(logit_normal.double())
    assert abs(float(logits.mean())) < 0.06
    assert float(logits.std()) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_a_share_of_the_classes_is_hidden(share: float) -> None:
    batch, inputs = drawn(class_dropout=share)
    classes = inputs.tensors["classes"]
    assert classes is not None
    hidden = classes == 10
    assert float(hidden.double().mean()) == pytest.approx(share, abs=0.02)
    assert torch.equal(classes[~hidden], batch.classes[~hidden])


def test_nothing_but_data_seed_and_step_draws() -> None:
    def tensors(**how: Any) -> dict[str, Tensor | None]:
        torch.rand(1)
        return drawn(rows=200, **how)[1].tensors

    first, again = tensors(), tensors()
    for key, value in first.items():
        assert value is not None
        for other, same in ((again, True), (tensors(step=1), False), (tensors(seed=1), False)):
            assert value.equal(other[key]) == same, key  # type: ignore[arg-type]


def test_learning_beats_what_looks_at_single_pixels(cache: Path, tmp_path: Path) -> None:
    run = make(budget={"steps": 160}, ema_decay=0.95)
    result = train(run, tmp_path, cache)
    scores = result["scores"]
    assert result["metric"] == "flow_loss"
    assert result["sample"] is result["details"] is None
    assert scores["test"].keys() == scores["validation"].keys() == {"flow_loss"}
    lines = list(make_task(run).baselines((), 160, cache))
    assert [line.name for line in lines] == ["pixels alone", "pixels together"]
    assert scores["test"]["flow_loss"] < lines[0].score
    assert lines[1].score < lines[0].score

    task = make_task(run)
    images = task.held_out("test", cache)  # type: ignore[attr-defined]
    model = load_run(tmp_path)[1]
    losses = flow_losses(lambda *given: model(*given).velocity, images.pixels, images.classes)
    documents = result["documents"]
    assert [name for name, _, _ in documents] == [str(of) for of in images.classes.tolist()]
    assert [loss for _, loss, _ in documents] == pytest.approx(losses.tolist(), rel=1e-6)
    assert scores["test"]["flow_loss"] == pytest.approx(sum(loss for _, loss, _ in documents) / len(documents))


def test_resumed_to_the_bit_with_an_average(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = {**settings()["model"]["blocks"]["main"], "dropout": 0.1}
    model = {**settings()["model"], "blocks": {"main": block}}
    data = {"images": "digits", "batch_size": 8, "crop": 1, "flip": True}
    run = make(model=model, data=data, ema_decay=0.8, objective={"times": "logit_normal"})
    assert assert_resumes(run, tmp_path, cache, monkeypatch)["status"] == "finished"


def test_a_batch_in_pieces_is_the_whole(cache: Path, tmp_path: Path) -> None:
    whole, pieces = (make(accumulation=accumulation, budget={"steps": 3}) for accumulation in (1, 4))
    results = [train(run, tmp_path / run.folder_name(), cache) for run in (whole, pieces)]
    first, second = (load_run(tmp_path / run.folder_name())[1].state_dict() for run in (whole, pieces))
    for name, weights in first.items():
        torch.testing.assert_close(second[name], weights, rtol=1e-3, atol=2e-5, msg=name)
    assert results[0]["batches_sha256"] == results[1]["batches_sha256"]
    assert not same_weights(*(tmp_path / run.folder_name() for run in (whole, pieces))), "rounding differs"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": {"class_dropout": 1.5}},
            "objective of image_generation: class_dropout is 1.5; 0 to 1 is allowed",
        ),
        (
            {"objective": {"times": "normal"}},
            "objective of image_generation: times is 'normal'; allowed: 'uniform', 'logit_normal'",
        ),
        (
            {"evaluation": {"sampling": {"num_images": 1}}},
            "sampling: num_images is 1; 0 (none) or at least 2 is needed",
        ),
        (
            {"evaluation": {"sampling": {"guidance": math.inf}}},
            "sampling: guidance is inf; a number that is not negative is needed",
        ),
        ({"z_loss": 0.1}, "run: z_loss is 0.1; the task image_generation has none, 0 is needed"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_task(make(**changes))
    assert str(caught.value) == message
