"""Training to classify images: what a batch becomes, what is measured, and that something is learnt."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from paribus.data.images.batches import ImageBatch
from paribus.evaluation.image_baselines import majority_class, nearest_image, ridge_classifier
from paribus.evaluation.image_errors import errors_by_class, image_errors
from paribus.evaluation.picture import grid
from paribus.training import loop, setup
from paribus.training.load import load_run
from paribus.training.loop import Tick, train
from paribus.training.model import build_model, check_model
from paribus.training.run import Run
from paribus.training.step import forward_and_backward
from paribus.training.task import make_task
from tests.small import journal, lasting, same_weights


def run_of(**values: Any) -> Run:
    """A small model on the digits of 8 x 8 pixels; `values` replace whole keys."""
    settings = {
        "name": "digits",
        "model": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "max_position_embeddings": 16,
            "causal": False,
            "position": "learned_2d",
            "task": {"name": "image_classification", "num_classes": 10},
            "image": {"size": 8, "patch_size": 4, "num_channels": 1},
        },
        "data": {"images": "digits", "batch_size": 32, "crop": 1, "flip": True},
        "budget": {"steps": 6},
        "evaluation": {"points": 2, "validation_images": 40, "test_images": 60},
        "objective": {"mixup": 0.4, "label_smoothing": 0.1},
    }
    return Run.from_json(settings | values)


def batch_of(rows: int = 5) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(rows, 1, 8, 8, generator=generator) * 2 - 1
    return ImageBatch(pixels, torch.arange(rows) % 10, {"digits": rows})


def test_without_an_objective_images_and_classes_are_as_they_are() -> None:
    batch = batch_of()
    inputs = make_task(run_of(objective={})).inputs(batch, 3)
    assert torch.equal(inputs.tensors["pixel_values"], batch.pixels)
    assert torch.equal(inputs.tensors["labels"], batch.classes)
    assert inputs.num_targets.tolist() == [1] * 5


def test_smoothing_gives_a_share_to_all_classes() -> None:
    batch = batch_of()
    inputs = make_task(run_of(objective={"label_smoothing": 0.2})).inputs(batch, 3)
    assert torch.equal(inputs.tensors["pixel_values"], batch.pixels)
    expected = torch.full((5, 10), 0.02)
    expected[range(5), range(5)] += 0.8
    torch.testing.assert_close(inputs.tensors["labels"], expected)


def test_mixup_mixes_an_image_and_its_class_by_the_same_share() -> None:
    batch = batch_of(10)  # one image of each class, so that labels say what was mixed
    tensors = make_task(run_of(objective={"mixup": 1.0})).inputs(batch, 3).tensors
    pixels, labels = tensors["pixel_values"], tensors["labels"]
    assert pixels is not None
    assert labels is not None
    torch.testing.assert_close(labels.sum(1), torch.ones(10))
    torch.testing.assert_close(pixels, torch.einsum("ij,jchw->ichw", labels, batch.pixels))
    assert ((labels > 0).sum(1) <= 2).all()
    assert (labels.diagonal() < 0.999).sum() >= 5, "most are mixed"
    assert (labels > 0).any(0).all(), "each is somewhere"


def test_shares_are_those_of_the_beta_distribution() -> None:
    task = make_task(run_of(objective={"mixup": 0.3}))
    shares = torch.cat([task._mixture(500, step)[0] for step in range(20)]).double()  # type: ignore[attr-defined]
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares.var().item() == pytest.approx(0.25 / 1.6, abs=0.01), "ab / ((a + b)² (a + b + 1))"


def test_what_is_drawn_follows_from_seed_and_step() -> None:
    batch = batch_of()

    def mixed(step: int, seed: int = 0) -> torch.Tensor:
        torch.rand(1)  # the global generator has no part in it
        data = {"images": "digits", "batch_size": 32, "seed": seed}
        labels = make_task(run_of(data=data)).inputs(batch, step).tensors["labels"]
        assert labels is not None
        return labels

    assert torch.equal(mixed(3), mixed(3))
    assert not torch.equal(mixed(3), mixed(4))
    assert not torch.equal(mixed(3), mixed(3, seed=1))


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_pieces_add_up_to_the_loss_of_the_whole_batch(tmp_path: Path, cache: Path, accumulation: int) -> None:
    run = run_of(accumulation=accumulation, data={"images": "digits", "batch_size": 8})
    task = make_task(run)
    trainer = setup.set_up(task, setup.make_accelerator(run, (), tmp_path), None, task.batches(cache), tmp_path)
    trainer.model.double()
    inputs = task.inputs(trainer.batches.batch(2), 2)
    inputs.tensors.update({name: x.double() for name, x in inputs.tensors.items() if x is not None})
    losses = forward_and_backward(trainer, inputs)
    found = [parameter.grad.clone() for parameter in trainer.model.parameters()]
    trainer.model.zero_grad()
    labels = inputs.tensors["labels"]
    assert labels is not None
    logits = trainer.model(pixel_values=inputs.tensors["pixel_values"]).logits
    expected = -(labels * logits.log_softmax(-1)).sum() / 8
    expected.backward()
    assert losses["cross_entropy"].item() == pytest.approx(expected.item(), abs=1e-6)
    for one, parameter in zip(found, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-5, atol=1e-6)


class Interrupted(Exception):
    """In place of a killed process."""


def interrupt(tick: Tick) -> None:
    if tick.step == 4:
        raise Interrupted


def test_a_run_is_resumed_to_the_bit(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(run_of(), tmp_path / "alone", cache)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Interrupted):
        train(run_of(), tmp_path / "resumed", cache, watch=interrupt)
    found = train(run_of(), tmp_path / "resumed", cache)
    assert lasting(found) == lasting(expected)
    assert journal(tmp_path / "resumed") == journal(tmp_path / "alone")
    assert same_weights(tmp_path / "resumed", tmp_path / "alone")


def test_digits_are_learnt_better_than_the_commonest_class(tmp_path: Path, cache: Path) -> None:
    data = {"images": "digits", "batch_size": 32}
    run = run_of(data=data, budget={"steps": 40}, objective={}, optimizer={"lr": 0.01})
    result = train(run, tmp_path / "run", cache)
    lines = {line.name: line.score for line in make_task(run).baselines((), 40, cache)}
    assert lines["nearest image"] < 0.05 < lines["majority class"]
    assert lines["linear classifier"] < 0.2
    assert 0 < result["scores"]["test"]["error_rate"] < 0.5 < lines["majority class"]
    assert result["metric"] == "error_rate"
    check_result(result, *load_run(tmp_path / "run"), cache)


def check_result(result: dict[str, Any], run: Run, model: Any, cache: Path) -> None:
    """Every number of a result follows from the model and the images."""
    images = make_task(run).held_out("test", cache)  # type: ignore[attr-defined]
    assert len(images.classes) == 60
    logits = model(pixel_values=images.pixels).logits.detach()
    wrong = logits.argmax(1) != images.classes
    scores = result["scores"]["test"]
    assert scores["error_rate"] == pytest.approx(wrong.float().mean().item())
    assert scores["cross_entropy"] == pytest.approx(functional.cross_entropy(logits, images.classes).item(), rel=1e-4)
    assert result["documents"] == [[str(int(c)), float(w), 1] for c, w in zip(images.classes, wrong, strict=True)]
    details = json.loads(json.dumps(result["details"]))
    confusion = torch.tensor(details["confusion"])
    assert confusion.sum(1).tolist() == images.classes.bincount(minlength=10).tolist()
    assert confusion.sum() - confusion.trace() == wrong.sum()
    misclassified = [[str(int(images.classes[n])), str(int(logits[n].argmax()))] for n in wrong.nonzero()[:, 0]]
    assert details["shown"][: len(misclassified)] == misclassified[:40]
    assert decoded(result["sample"]).shape == (4 * 50 + 2, 10 * 50 + 2)
    assert result["documents_sha256"]["test"] == images.sha256


def decoded(uri: str) -> np.ndarray:
    kind, _, text = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_shows_every_image_where_it_belongs(channels: int) -> None:
    images = torch.rand(3, channels, 8, 8) * 2.4 - 1.2
    picture = decoded(grid(images, 2)).reshape(2 * 50 + 2, 2 * 50 + 2, channels)
    for number in range(3):
        top, left = number // 2 * 50 + 2, number % 2 * 50 + 2
        shown = picture[top : top + 48, left : left + 48].astype(np.float32)
        expected = np.moveaxis(((images[number].clamp(-1, 1) + 1) * 127.5).numpy(), 0, -1)
        assert np.abs(shown.reshape(8, 6, 8, 6, channels) - expected[:, None, :, None]).max() <= 0.5
    assert (picture[52:, 52:] == 255).all()
    assert (picture[:2] == 255).all()


def test_a_picture_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"images has shape \[0, 1, 8, 8\]"):
        grid(torch.zeros(0, 1, 8, 8), 2)
    with pytest.raises(ValueError, match=r"images has shape \[1, 2, 8, 8\]"):
        grid(torch.zeros(1, 2, 8, 8), 2)
    with pytest.raises(ValueError, match="columns is 0"):
        grid(torch.zeros(1, 1, 8, 8), 0)


def test_errors_are_counted_for_each_class() -> None:
    model = build_model(run_of())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head.bias[1] = 1.0  # whatever it sees
    found = image_errors(model, batch_of(4).pixels, torch.tensor([1, 1, 0, 3]))
    assert found.errors.tolist() == [0, 0, 1, 1]
    assert found.scores["error_rate"] == 0.5
    told = errors_by_class(found, torch.tensor([1, 1, 0, 3]), list("abcdefghij"))
    assert told["classes"]["a"] == {"images": 1, "error_rate": 1.0}
    assert told["classes"]["b"] == {"images": 2, "error_rate": 0.0}
    assert told["classes"]["c"] == {"images": 0, "error_rate": None}
    assert told["confusion"][3] == [0, 1, *[0] * 8]
    with torch.no_grad():
        model.head.bias[2] = torch.nan
    assert np.isnan(image_errors(model, batch_of(4).pixels, torch.arange(4)).scores["error_rate"])


def test_baselines_are_what_they_say() -> None:
    known = torch.randn(12, 1, 2, 2)
    classes = torch.tensor([2, 0, 1, 1, 2, 0, 0, 2, 1, 0, 1, 0])
    asked = torch.randn(7, 1, 2, 2)
    assert majority_class(classes, 3).tolist() == [0, 0, 0]
    nearest = [classes[(known - x).square().sum((1, 2, 3)).argmin()] for x in asked]
    assert nearest_image(known, classes, asked).tolist() == [int(c) for c in nearest]
    x, y = known.flatten(1).double(), torch.eye(3).double()[classes]
    centred = x - x.mean(0)
    penalty = 0.1 * centred.square().sum() / 4
    # The same minimum as ordinary least squares with rows √λ e_i that shall give 0.
    rows = torch.cat([centred, penalty.sqrt() * torch.eye(4).double()])
    targets = torch.cat([y - y.mean(0), torch.zeros(4, 3).double()])
    solved = torch.linalg.lstsq(rows, targets).solution
    outputs = (asked.flatten(1).double() - x.mean(0)) @ solved + y.mean(0)
    assert torch.equal(ridge_classifier(known, classes, asked), outputs.argmax(1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": {"mixup": -1}}, "objective of image_classification: mixup is -1"),
        ({"objective": {"label_smoothing": 1}}, "objective of image_classification: label_smoothing is 1"),
        ({"objective": {"mixing": 1}}, "objective of image_classification: unknown key 'mixing'; did you mean 'mixup'"),
        ({"z_loss": 0.1}, "run: z_loss is 0.1; the task image_classification has none, 0 is needed"),
        ({"data": {"corpora": {"x": 1}}}, "data: the task image_classification reads images; the key 'images'"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_model(run_of(**values))


def test_another_number_of_classes_is_refused(cache: Path) -> None:
    model = run_of().model | {"task": {"name": "image_classification", "num_classes": 7}}
    with pytest.raises(ValueError, match="num_classes is 7; the set of images 'digits' has 10"):
        make_task(run_of(model=model)).batches(cache)
