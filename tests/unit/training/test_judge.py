"""The judge of generated images: trained once and apart, or a run of the user's; what it says of samples."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from paribus.data.images.batches import held_out_images
from paribus.data.images.spec import Images
from paribus.evaluation.image_quality import frechet_distance
from paribus.nn.config import ParibusConfig
from paribus.nn.patches import ImageConfig
from paribus.training import judge as judges
from paribus.training.judge import Judge, find_judge, judge_run
from paribus.training.load import load_run
from paribus.training.loop import train
from paribus.training.run import Run, with_values
from paribus.training.samples import SampleQuality
from paribus.training.task import make_task
from tests.small import same_weights
from tests.unit.training.test_image_generation import make

NAMES = tuple(map(str, range(10)))


def tiny_judge(images: str, image: ImageConfig, num_classes: int) -> Run:
    """The recipe, with a smaller model and fewer steps."""
    run = judge_run(images, image, num_classes)
    smaller = {"model.hidden_size": 16, "model.num_hidden_layers": 1, "model.image.patch_size": 4, "budget.steps": 60}
    return with_values(run, smaller)


@pytest.fixture(scope="module")
def folder(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished classification run on digits."""
    folder = tmp_path_factory.mktemp("judge")
    train(tiny_judge("digits", ImageConfig(8, 4, 1), 10), folder, cache)
    return folder


def generator(sampling: dict[str, Any] | None = None, **changes: Any) -> Run:
    """A run of image generation that is asked for samples."""
    sampling = {"num_images": 40, "steps": 2, **(sampling or {})}
    evaluation = {"points": 1, "validation_images": 20, "test_images": 100, "sampling": sampling}
    return make(evaluation=evaluation, budget={"steps": 3}, **changes)


def find(named: Path | None, cache: Path, *, names: tuple[str, ...] = NAMES, **image: Any) -> Judge:
    config = ParibusConfig(**generator().model)
    config.image = {**(config.image or {}), **image}
    return find_judge(None if named is None else str(named), Images("digits"), config, names, cache)


def test_a_run_is_a_judge(folder: Path, cache: Path) -> None:
    judge = find(folder, cache)
    images = held_out_images(Images("digits"), "test", 8, 1, cache, None)
    features, classes = judge.look(images.pixels)
    assert features.shape == (len(images.classes), 16)
    assert float((classes == images.classes).double().mean()) == pytest.approx(judge.accuracy)
    assert judge.accuracy > 0.5
    again = find(folder, cache)
    assert judge.weights_sha256 == again.weights_sha256
    with torch.no_grad():
        next(again.model.parameters())[0, 0] += 1
    assert judge.weights_sha256 != again.weights_sha256


def test_the_small_judge_is_trained_once_and_apart(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "judge_run", tiny_judge)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(name, "1")  # a judge is no part of what a launcher has started
    before = torch.get_rng_state()
    judge = find(None, cache)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("trained again"))
    assert find(None, cache).weights_sha256 == judge.weights_sha256
    assert torch.equal(torch.get_rng_state(), before)
    assert judge.weights_sha256 == find(folder, cache).weights_sha256, "as if trained by hand"
    assert judge.accuracy == find(folder, cache).accuracy


def test_a_judge_that_cannot_be_trained_says_why(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: no space\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    monkeypatch.setattr(judges, "judge_run", lambda *given: replace(tiny_judge(*given), seed=1))
    message = "^sampling: the judge of images 'digits' could not be trained: ValueError: no space$"
    with pytest.raises(ValueError, match=message):
        find(None, cache)


def test_the_recipe_takes_any_size() -> None:
    for size, patch in ((8, 2), (28, 7), (32, 8), (64, 16), (29, 29), (2, 1)):
        assert judge_run("digits", ImageConfig(size, 1, 3), 10).model["image"]["patch_size"] == patch


def test_who_judges_changes_no_weight(folder: Path, cache: Path, tmp_path: Path) -> None:
    block = {**make().model["blocks"]["main"], "dropout": 0.2}
    model = {**make().model, "blocks": {"main": block}}
    judged = generator({"judge": str(folder)}, model=model)
    result = train(judged, tmp_path / "judged", cache)
    alone = with_values(judged, {"evaluation.sampling.num_images": 0})
    train(alone, tmp_path / "alone", cache)
    assert same_weights(tmp_path / "judged", tmp_path / "alone")
    assert result["scores"]["test"].keys() == {"flow_loss", "frechet_distance", "sample_error_rate"}
    assert result["scores"]["validation"].keys() == {"flow_loss"}
    assert result["sample"].startswith("data:image/png;base64,")
    assert result["details"]["judge"]["weights_sha256"] == find(folder, cache).weights_sha256


def test_samples_are_judged_by_their_features(folder: Path, cache: Path) -> None:
    """A model that hands out training images makes perfect samples, all of them copies."""
    run = generator({"judge": str(folder), "num_images": 60})
    task: Any = make_task(run)
    test, known = task.held_out("test", cache), task.held_out("train", cache)
    quality = SampleQuality(task, test, cache)
    assert quality.classes.bincount().tolist() == [6] * 10

    class Copier(torch.nn.Linear):
        def sample(self, noise: torch.Tensor, classes: torch.Tensor, **how: Any) -> torch.Tensor:
            assert how == {"steps": 2, "solver": "heun", "guidance": 2.0}
            assert noise.shape == (60, 1, 8, 8)
            taken = [known.pixels[known.classes == of][number // 10] for number, of in enumerate(classes.tolist())]
            return torch.stack(taken)

    model = Copier(1, 1)
    found = quality(model)
    judge = find(folder, cache)
    features, seen = judge.look(quality.draw(model))
    assert found.scores["frechet_distance"] == frechet_distance(features, judge.look(test.pixels)[0])
    wrong = seen != quality.classes
    assert found.scores["sample_error_rate"] == pytest.approx(float(wrong.double().mean()))
    by_class = found.details["sample_error_by_class"]
    assert by_class == {name: float(wrong[of::10].double().mean()) for of, name in enumerate(NAMES)}
    copies = found.details["copies"]
    assert copies["share_below_threshold"] == 1
    assert copies["median_distance"] == 0 < copies["threshold"] < copies["median_distance_of_test_images"]


def test_samples_that_are_no_numbers_are_infinitely_far(folder: Path, cache: Path, tmp_path: Path) -> None:
    run = generator({"judge": str(folder)})
    task: Any = make_task(run)
    train(run, tmp_path, cache)
    model = load_run(tmp_path)[1]
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    found = SampleQuality(task, task.held_out("test", cache), cache)(model)
    assert found.scores == {"frechet_distance": float("inf"), "sample_error_rate": 1.0}


@pytest.mark.parametrize(
    ("image", "names", "message"),
    [
        ({"size": 4}, NAMES, "image.size is 8; 4 is needed"),
        ({"num_channels": 3}, NAMES, "image.num_channels is 1; 3 is needed"),
        ({}, ("odd", "even"), f"classes is {list(NAMES)!r}; ['odd', 'even'] is needed"),
    ],
)
def test_a_judge_of_other_images_is_refused(
    image: dict[str, Any], names: tuple[str, ...], message: str, folder: Path, cache: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        find(folder, cache, names=names, **image)
    assert str(caught.value) == f"sampling: judge '{folder}': {message}"


def test_a_judge_is_refused_before_there_is_a_folder(cache: Path, tmp_path: Path) -> None:
    run = make(evaluation={"sampling": {"num_images": 2, "judge": str(tmp_path / "nobody")}})
    with pytest.raises(ValueError, match="nobody' is not a run"):
        train(run, tmp_path / "run", cache)
    assert not (tmp_path / "run").exists()


def test_a_judge_that_is_none_is_refused(folder: Path, cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "generator"
    train(make(budget={"steps": 1}), other, cache)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    os.link(folder / "run.json", unfinished / "run.json")
    for place, message in (
        (other, f"sampling: judge '{other}' is a run of image_generation; one of image_classification is needed"),
        (unfinished, f"sampling: judge '{unfinished}' is not finished; a finished run is needed"),
        (tmp_path, f"'{tmp_path}' is not a run: it has no readable run.json"),
    ):
        with pytest.raises(ValueError) as caught:
            find(place, cache)
        assert str(caught.value) == message
    config = ParibusConfig(**generator().model)
    with pytest.raises(ValueError, match=r"images is 'digits'; 'glyphs' is needed$"):
        find_judge(str(folder), Images("glyphs"), config, NAMES, cache)
