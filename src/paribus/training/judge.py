"""The judge of generated images: a frozen classifier of the same images, the same for every model that it looks at.

It is the model of a finished run of image_classification, or a small one that is trained once for a set of images and
kept in the cache; whoever needs it meanwhile waits. It is trained in a process of its own, so that the run which asks
goes on as if there were none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paribus.data.cache import prepared_folder, stable_hash
from paribus.data.images.batches import ImageBatches
from paribus.data.images.spec import Images
from paribus.nn.config import ParibusConfig
from paribus.nn.patches import ImageConfig
from paribus.nn.task import TaskModel

from .files import write_json
from .folder import read_record, read_result
from .load import load_run
from .loop import train
from .model import build_model
from .run import Run
from .sources import source_hashes

_IMAGES_AT_ONCE = 256
_WEIGHTS, _ACCURACY = "model.safetensors", "accuracy.json"
_LAUNCHERS = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_")
"""What variables of launchers begin with: the judge's process is none of theirs."""


@dataclass(frozen=True)
class Judge:
    """A classifier that is not trained any more."""

    model: TaskModel
    accuracy: float
    """The share of test images that it gets right."""

    @torch.no_grad()
    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, D] and classes [N] of images [N, channels, size, size] from -1 to 1."""
        outputs = [self.model(pixel_values=part) for part in pixels.split(_IMAGES_AT_ONCE)]
        features = torch.cat([output.features for output in outputs])
        return features, torch.cat([output.logits for output in outputs]).argmax(1)

    @property
    def weights_sha256(self) -> str:
        """A hash of all weights and their names."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def find_judge(
    named: str | None, data: Images, config: ParibusConfig, class_names: tuple[str, ...], cache: Path
) -> Judge:
    """The judge of images made by a model of `config` after those of `data`.

    Args:
        named: the folder of a finished run; None for the one that is kept in the cache, and trained if it is not.
        class_names: those of `data`.

    Raises:
        ValueError: a folder with something else, or with a classifier of other images.
    """
    with torch.random.fork_rng(devices=[]):  # building a model draws numbers
        if named is not None:
            return _of_run(Path(named), data, config, class_names)
        return _of_cache(judge_run(data.images, config.image_config, len(class_names)), cache)


def judge_run(images: str, image: ImageConfig, num_classes: int) -> Run:
    """The run of the small judge, the same for all models of these images."""
    block = {
        "mixer": {"name": "attention", "num_heads": 4},
        "channel": {"name": "glu"},
    }
    model = {
        "task": {"name": "image_classification", "num_classes": num_classes},
        "image": {"size": image.size, "patch_size": _patch_size(image.size), "num_channels": image.num_channels},
        "causal": False,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "position": "learned_2d",
        "blocks": {"main": block},
    }
    settings = {
        "name": "judge",
        "model": model,
        "data": {"images": images, "batch_size": 64, "crop": image.size // 14},
        "objective": {"label_smoothing": 0.1},
        "budget": {"steps": 1000},
        "optimizer": {"lr": 3e-3},
        "evaluation": {"points": 1, "validation_images": 500, "test_images": 10_000},
    }
    return Run.from_json(settings)


def _patch_size(size: int) -> int:
    """The smallest patches of which there are no more than 4 x 4: few tokens, so that a judge costs a minute."""
    return next(patch for patch in range(1, size + 1) if size % patch == 0 and size // patch <= 4)


def _of_cache(run: Run, cache: Path) -> Judge:
    """The model of `run`, trained if no process has done so."""
    # A judge outlives changes of the code, but not those of the model that its weights belong to.
    sources = {name: digest for name, digest in source_hashes(run).items() if name.startswith("nn/")}
    key = stable_hash([run.fingerprint(), sources, _manifests(run, cache)])
    folder = cache / "judges" / key[:16]
    prepared_folder(folder, lambda place: _train_apart(run, place, cache))
    model = build_model(run)
    model.load_state_dict(load_file(folder / _WEIGHTS))
    return Judge(model.eval(), float(json.loads((folder / _ACCURACY).read_bytes())))


def _manifests(run: Run, cache: Path) -> dict[str, Any]:
    image = run.model["image"]
    assert isinstance(run.data, Images), "made in judge_run"
    return ImageBatches(run.data, image["size"], image["num_channels"], cache).manifests()


def _train_apart(run: Run, folder: Path, cache: Path) -> dict[str, Any]:
    """Train `run` in a process of its own and leave weights and accuracy in `folder`; returns what run it is."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS)}
    assert isinstance(run.data, Images), "made in judge_run"
    command = [sys.executable, "-m", "paribus.training.judge", json.dumps(run.to_json()), str(folder), str(cache)]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"sampling: the judge of images '{run.data.images}' could not be trained: {last}")
    return {"run": run.to_json()}


def _train_here(run: Run, folder: Path, cache: Path) -> None:
    """What the process of its own does."""
    result = train(run, folder / "training", cache)
    if result["status"] != "finished":
        raise ValueError(result["divergence"])
    _, model = load_run(folder / "training")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / _WEIGHTS)
    write_json(folder / _ACCURACY, 1 - result["scores"]["test"]["error_rate"])
    shutil.rmtree(folder / "training")


def _of_run(folder: Path, data: Images, config: ParibusConfig, class_names: tuple[str, ...]) -> Judge:
    """The model of the finished run in `folder`."""
    record, result = read_record(folder), read_result(folder)
    judge = f"sampling: judge '{folder}'"
    theirs = Run.from_json(record["run"])
    task = theirs.model.get("task", {"name": "causal_lm"})["name"]
    if task != "image_classification":
        raise ValueError(f"{judge} is a run of {task}; one of image_classification is needed")
    if result is None or result["status"] != "finished":
        raise ValueError(f"{judge} is not finished; a finished run is needed")
    assert isinstance(theirs.data, Images), "a classifier reads images"
    _, model = load_run(folder)
    known = record["manifests"]["corpora"][theirs.data.images]["classes"]
    image = config.image_config
    for what, found, needed in (
        ("images", theirs.data.images, data.images),
        ("image.size", model.config.image_config.size, image.size),
        ("image.num_channels", model.config.image_config.num_channels, image.num_channels),
        ("classes", known, list(class_names)),
    ):
        if found != needed:
            raise ValueError(f"{judge}: {what} is {found!r}; {needed!r} is needed")
    return Judge(model, 1 - result["scores"]["test"]["error_rate"])


if __name__ == "__main__":
    _train_here(Run.from_json(json.loads(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]))
