"""Published folders of all other tasks than causal language modelling, used by plain libraries."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor

from paribus.cli import main
from paribus.data.images.batches import as_tensor
from paribus.data.images.pixels import squared
from paribus.data.tokenizers import byte_tokenizer
from paribus.nn.initialization import initialize
from paribus.nn.model_settings import read_model_config
from paribus.nn.task import TASKS, TaskModel, task_model
from paribus.publish import generate, load_any, load_published, prove, publish_model, publish_run
from paribus.training.loop import train
from paribus.training.run import Run
from tests import small
from tests.system.test_publish import USER_MIXER, bare

pytestmark = pytest.mark.slow

KERNELS = ("attention", "container", "aft", "axial_mlp_mixer", "mamba2", "delta_product", "mamba", "mesa_net", "hyena")
"""Mixers that together need every kernel there is."""
CLASSES = ("dark", "grey", "light")
SIZE = 8
IMAGE_TASKS = ("image_classification", "image_generation")
REST = ("masked_lm", *IMAGE_TASKS)


def write_images(folder: Path) -> Path:
    """Pictures of three brightnesses, a sub-folder for each."""
    draw = np.random.Generator(np.random.PCG64(0))
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(40):
            pixels = draw.integers(80 * number, 80 * number + 80, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def model_settings(task: str, mixers: dict[str, str], **image: Any) -> dict[str, Any]:
    """A small model for `task`, one layer for each of `mixers`."""
    scheme = "adaln_zero" if task == "image_generation" else "pre"
    blocks = {
        name: {"mixer": {"name": path}, "channel": {"name": "glu", "expansion": 1.0}, "residual": {"name": scheme}}
        for name, path in mixers.items()
    }
    sizes = {"hidden_size": 32, "max_position_embeddings": 32, "num_hidden_layers": len(blocks)}
    settings = {**sizes, "blocks": blocks, "layout": list(blocks), "causal": False, "task": {"name": task}}
    if task in IMAGE_TASKS:
        settings["task"]["num_classes"] = len(CLASSES)
        settings["image"] = {"size": SIZE, "patch_size": 2, "scan": "alternate", **image}
    return settings


def make_model(task: str, **image: Any) -> TaskModel:
    config = read_model_config(model_settings(task, {"main": "attention"}, **image))
    model = task_model(config)(config)
    initialize(model, 0, config.initialization)
    return model


def symbols(task: str) -> Any:
    return CLASSES if task in IMAGE_TASKS else byte_tokenizer()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cache: Path, text: Path) -> dict[str, Path]:
    """A finished run of each task, with a user's own mixer and one of each kernel; the images are gone since."""
    place = tmp_path_factory.mktemp("runs")
    mixer = place / "gated.py"
    mixer.write_text(USER_MIXER)
    images = write_images(place / "images")
    found = {}
    for task in REST:
        settings = small.settings(text, steps=2, optimizer={"name": "adamw", "lr": 0.05})
        settings |= {"name": task, "model": model_settings(task, {"gated": str(mixer)} | {m: m for m in KERNELS})}
        settings["evaluation"] |= {"sampling": {"num_images": 0, "steps": 4, "guidance": 2.0}}
        if task in IMAGE_TASKS:
            settings["data"] = {"images": str(images), "batch_size": 4}
        found[task] = place / task
        train(Run.from_json(settings), found[task], cache)
    shutil.rmtree(images)
    return found


@pytest.fixture(scope="module")
def published(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("published")
    return {task: publish_run(run, place / f"{task}-1.0") for task, run in runs.items()}


def test_no_task_is_left_out() -> None:
    assert {"causal_lm", *REST} == set(TASKS.names()) == set(prove.TASKS)


@pytest.mark.parametrize("task", REST)
def test_the_folder_is_whole(published: dict[str, Path], task: str) -> None:
    out = published[task]
    code = out / "denoiser" if task == "image_generation" else out
    names = {path.name for path in code.iterdir()}
    kernels = {path.stem for path in (Path(prove.__file__).parents[1] / "nn" / "kernels").glob("*.py")}
    assert {f"kernels_{name}.py" for name in kernels - {"__init__", "fla"}} <= names
    assert {"mixers_gated.py", f"tasks_{task}.py", "model.safetensors", "modeling_paribus.py"} <= names
    assert {"README.md", "proof.safetensors"} <= {path.name for path in out.iterdir()}
    config = json.loads((code / "config.json").read_text())
    assert {value.split(".")[0] for value in config["auto_map"].values()} == {"modeling_paribus"}
    assert config["architectures"] == [TASKS.component(task, TaskModel).__name__]
    if task in IMAGE_TASKS:
        assert config["id2label"] == {str(number): name for number, name in enumerate(CLASSES)}
    assert [path for path in out.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("task", "lines"),
    {
        "masked_lm": ["pipeline_tag: fill-mask", "| bits per hidden byte, held-out test documents | ", "| vocabulary"],
        "image_classification": [
            "pipeline_tag: image-classification",
            "| share of images misclassified, held-out test images | ",
            "| trained on | 8 images (128 tokens) of ",
            "| classes | 3: dark, grey, light |",
        ],
        "image_generation": ["library_name: diffusers", "| squared error of the velocity, held-out test images | "],
    }.items(),
)
def test_the_card(published: dict[str, Path], task: str, lines: list[str]) -> None:
    card = (published[task] / "README.md").read_text()
    for line in ["license: apache-2.0", f"# {task}\n", f'folder = "{task}-1.0"', *lines]:
        assert line in card
    assert "$" not in card


def test_the_commands_of_the_cards_work(published: dict[str, Path], tmp_path: Path) -> None:
    """All in one process, where neither this library nor einops can be imported."""
    commands = ["import os, sys\nsys.modules['paribus'] = sys.modules['fla'] = sys.modules['einops'] = None\n"]
    for task, folder in published.items():
        shutil.copytree(folder, tmp_path / task / folder.name)
        blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        assert len(blocks) == 2
        commands += [f"os.chdir({str(tmp_path / task)!r})", *blocks, f"print('done', {task!r})"]
    (tmp_path / "commands.py").write_text("\n".join(commands))
    result = bare(["commands.py"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("done ")] == list(published)
    for task in ("masked_lm", "image_classification"):
        assert (tmp_path / task / "further" / "mixers_gated.py").is_file()
    for number in range(2):
        with Image.open(tmp_path / "image_generation" / f"image-{number}.png") as drawn:
            assert drawn.size == (SIZE, SIZE)
    before, after = (
        load_file(place / "denoiser" / "model.safetensors")
        for place in (published["image_generation"], tmp_path / "image_generation" / "image_generation-1.0")
    )
    assert not torch.equal(before["head.weight"], after["head.weight"]), "trained further in its own folder"


def spoil_weights(out: Path) -> None:
    (path,) = out.rglob("model.safetensors")
    weights = load_file(path)
    weights["model.norm.weight"][0] *= 1 + 2**-20
    save_file(weights, path, metadata={"format": "pt"})


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def spoil(out: Path) -> None:
        text = (out / name).read_text()
        assert old in text
        (out / name).write_text(text.replace(old, new))

    return spoil


@pytest.mark.parametrize(
    ("task", "spoil", "message"),
    [
        ("masked_lm", spoil_weights, "the logits differ from the proof by up to"),
        ("image_classification", spoil_weights, "the logits differ from the proof by up to"),
        ("image_generation", spoil_weights, "the velocities differ from the proof by up to"),
        (
            "image_classification",
            replaced("preprocessor_config.json", "0.5", "0.4"),
            "the pixels that the image processor reads differ",
        ),
        ("image_generation", replaced("pipeline.py", "clamp(0, 1)", "clamp(0, 0.5)"), "the images differ"),
        (
            "masked_lm",
            replaced("tokenizer_config.json", '"mask_token": "<|mask|>"', '"mask_token": "a"'),
            "the pipeline gives",
        ),
    ],
)
def test_what_is_spoilt_fails_the_proof(
    published: dict[str, Path], tmp_path: Path, task: str, spoil: Callable[[Path], None], message: str
) -> None:
    out = shutil.copytree(published[task], tmp_path / "copy")
    spoil(out)
    with pytest.raises(SystemExit, match=message):
        prove.prove(str(out), out / "proof.safetensors", tmp_path / "again")


def test_an_earlier_publication_is_replaced(
    published: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paribus.publish.publication._prove", lambda folder: None)
    out = shutil.copytree(published["image_generation"], tmp_path / "out")
    publish_model(make_model("image_generation"), CLASSES, out, card={}, name="Another")
    assert "# Another\n" in (out / "README.md").read_text()
    assert not (out / "denoiser" / "mixers_gated.py").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("task", REST)
def test_the_library_loads_it(runs: dict[str, Path], published: dict[str, Path], task: str) -> None:
    (trained, known), (found, read) = load_any(runs[task]), load_any(published[task])
    assert type(found) is not type(trained)
    assert set(found.state_dict()) == set(trained.state_dict())
    for name, value in trained.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert read == known if task in IMAGE_TASKS else read.mask_token_id == known.mask_token_id == 253


def test_the_mask_token_is_read_in_text(runs: dict[str, Path], published: dict[str, Path]) -> None:
    _, tokenizer = load_published(published["masked_lm"])
    assert tokenizer("a<|mask|>b")["input_ids"] == [97, 253, 98]
    assert tokenizer.padding_side == "right"
    assert load_any(runs["masked_lm"])[1]("<|mask|>")["input_ids"] == list(b"<|mask|>"), "in training it stays text"
    both = [generate(folder["masked_lm"], "a <|mask|>at and <|mask|>") for folder in (runs, published)]
    assert both[0] == both[1]
    assert "<|mask|>" not in both[0] and both[0].startswith("a ") and "at and " in both[0]


def test_the_image_processor_reads_as_the_run_did(published: dict[str, Path]) -> None:
    processor = AutoImageProcessor.from_pretrained(published["image_classification"])
    draw = np.random.Generator(np.random.PCG64(0))
    for side in (SIZE, 21):
        pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
        own = as_tensor(squared(pixels, SIZE)[None], 3)
        read = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
        assert torch.equal(read, own)
    wide = draw.integers(0, 256, (20, 33, 3), dtype=np.uint8)
    assert processor(Image.fromarray(wide), return_tensors="pt")["pixel_values"].shape == (1, 3, SIZE, SIZE)


def test_both_kinds_of_folder_draw_the_same(runs: dict[str, Path], published: dict[str, Path], tmp_path: Path) -> None:
    pictures = [tmp_path / "run.png", tmp_path / "published.png"]
    for folders, picture in zip((runs, published), pictures, strict=True):
        assert generate(folders["image_generation"], "dark, light,1", out=picture) == str(picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    generate(runs["image_generation"], "dark, light,1", out=pictures[0], seed=1)
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    model, _ = load_published(published["image_generation"])
    assert model.config.sampling == {"steps": 4, "solver": "heun", "guidance": 2.0}


def test_evaluate(
    runs: dict[str, Path],
    published: dict[str, Path],
    cache: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PARIBUS_CACHE", str(cache))
    images = write_images(tmp_path / "images")
    for task, option, title in (
        ("masked_lm", ["--corpus", text], "bits per hidden byte"),
        ("image_classification", ["--images", images], "share of images misclassified"),
        ("image_generation", ["--images", images], "squared error of the velocity"),
    ):
        lines = []
        for folder in (runs[task], published[task]):
            assert main(["evaluate", str(folder), *map(str, option), "--documents", "5"]) == 0
            (line,) = capsys.readouterr().out.splitlines()
            assert line.endswith(title)
            lines.append(line)
        assert lines[0] == lines[1]
    assert main(["evaluate", str(runs["masked_lm"]), "--documents", "2"]) == 0, "of its own text"


def test_what_does_not_apply_is_one_line(
    runs: dict[str, Path],
    published: dict[str, Path],
    text: Path,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PARIBUS_CACHE", str(cache))
    masked, classifier, generator = (str(runs[task]) for task in REST)
    out = ["--out", str(tmp_path / "x.png")]
    for arguments, message in (
        (["generate", masked, "nothing hidden"], "the prompt hides nothing; write <|mask|> for each token"),
        (["generate", masked, "<|mask|>" * 33], "the prompt has 33 tokens; the model reads 32"),
        (["generate", masked, "<|mask|>", *out], "makes text; leave out --out"),
        (["generate", classifier, "dark"], "classifies images and makes nothing"),
        (["generate", generator, "dark"], "makes images; a file is needed: --out FILE.png"),
        (["generate", generator, "dark,blue", *out], "the class 'blue'; allowed: 0 to 2, dark, grey, light"),
        (["evaluate", masked, "--images", "digits"], "reads text; name some with --corpus"),
        (["evaluate", classifier, "--corpus", str(text)], "reads images; name some with --images"),
        (["evaluate", classifier, "--images", "digits"], "the model knows dark, grey, light, and the same"),
        (["evaluate", str(published["masked_lm"])], "does not say what text it was trained on"),
        (["evaluate", str(published["image_generation"])], "does not say what images it was trained on"),
    ):
        assert main(arguments) == 2, arguments
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1, printed


def test_what_cannot_be_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(task: str, known: Any, message: str, **image: Any) -> None:
        with pytest.raises(ValueError, match=message):
            publish_model(make_model(task, **image), known, tmp_path / "out", card={}, name="Never")
        assert not list(tmp_path.iterdir())

    refused("image_classification", CLASSES, "num_channels is 1; a classifier", num_channels=1)
    refused("image_classification", CLASSES[:2], "'dark', 'grey'; the model knows 3")
    refused("image_generation", ("a", "a", "b"), "the model knows 3, and as many different names")
    tokenizer = byte_tokenizer()
    tokenizer.mask_token = None
    refused("masked_lm", tokenizer, "mask token is None; the model's is 253")
    monkeypatch.setattr("paribus.publish.form.find_spec", lambda name: None)
    refused("image_generation", CLASSES, r'the package diffusers is missing; run: pip install "paribus\[image\]"')
