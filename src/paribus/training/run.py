"""`Run`: everything that decides one training, as JSON."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from paribus.data.batches import Data
from paribus.data.images.spec import Images
from paribus.nn.config import DEFAULT_BLOCKS
from paribus.nn.flow import check_solver
from paribus.nn.hybrids import spell_out
from paribus.nn.model_settings import read_model_config
from paribus.nn.settings import nearest, read_settings
from paribus.optim.optimizer import Optimizer
from paribus.optim.schedule import Schedule

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Budget:
    """How long to train: exactly one of the four.

    Raises:
        ValueError: none or several given, or one that is not positive.
    """

    tokens: int | None = None
    steps: int | None = None
    flops: float | None = None
    """Forward and backward, as counted by the FLOP counter."""
    seconds: float | None = None
    """Turned into steps once, by timing the first ones; the number is recorded, so that resuming stays exact."""

    def __post_init__(self) -> None:
        given = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"budget: {given or 'nothing'} given; exactly one of tokens, steps, flops, seconds")
        for key, value in given.items():
            if not 0 < value < math.inf:
                raise ValueError(f"budget: {key} is {value}; a positive number is needed")


@dataclass(frozen=True)
class Sampling:
    """How images are drawn at the end from a model that makes them, and who looks at them.

    Raises:
        ValueError: a number that is too small.
    """

    num_images: int = 500
    """As many of each class; 0: none, and then nobody has to look at them."""
    steps: int = 10
    """In which time goes from noise to image."""
    solver: Literal["euler", "heun"] = "heun"
    guidance: float = 2.0
    """How much the class is followed: 1 as it was learned, more exaggerates it, 0 ignores it."""
    judge: str | None = None
    """The folder of a finished run of image_classification on the same images; null: a small one, trained once."""

    def __post_init__(self) -> None:
        if self.num_images < 0 or self.num_images == 1:
            raise ValueError(f"sampling: num_images is {self.num_images}; 0 (none) or at least 2 is needed")
        check_solver(self.steps, self.solver, self.guidance)


@dataclass(frozen=True)
class Evaluation:
    """What is measured on held-out documents, and how often.

    Raises:
        ValueError: a number that is too small.
    """

    points: int = 8
    """Evaluations on the validation split along the run, evenly spaced, the last one at its end."""
    validation_documents: int = 48
    """What tuning and the curves are measured on."""
    test_documents: int = 128
    """What the verdict is measured on, once, at the end."""
    max_bytes_per_document: int = 1024
    validation_images: int = 500
    """The same two, for tasks on images; a split that has fewer gives all."""
    test_images: int = 1000
    sampling: Sampling = field(default_factory=Sampling)
    """For the task image_generation."""

    def __post_init__(self) -> None:
        least = {"points": 0, "validation_documents": 1, "test_documents": 1, "max_bytes_per_document": 4}
        least |= {"validation_images": 1, "test_images": 1}
        for key, value in least.items():
            if getattr(self, key) < value:
                raise ValueError(f"evaluation: {key} is {getattr(self, key)}; at least {value} is needed")

    def num_images(self, split: str) -> int:
        """How many images of the split "validation" or "test" are measured."""
        return self.validation_images if split == "validation" else self.test_images

    def num_documents(self, split: str) -> int:
        """How many documents of the split "validation" or "test" are measured."""
        return self.validation_documents if split == "validation" else self.test_documents


@dataclass(frozen=True)
class Run:
    """One training of one model. Equal runs (the name aside) give equal weights on the same machine."""

    name: str
    """What its folder is called; it changes nothing else."""
    model: dict[str, Any]
    data: Data | Images
    budget: Budget
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    evaluation: Evaluation = field(default_factory=Evaluation)
    objective: dict[str, Any] = field(default_factory=dict)
    """How the model's task is trained: settings of the task, such as the share of hidden tokens."""
    seed: int = 0
    """Of the initial weights; the order of the data has its own seed."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    threads: int = 1
    """CPU threads; part of the run, as sums round differently with another number."""
    accumulation: int = 1
    """Pieces in which a batch goes forward and backward before the weights are updated; it changes rounding only."""
    z_loss: float = 0.0
    """Weight of the mean of log(Σ exp logits)² in what is minimised; it is reported apart."""
    ema_decay: float = 0.0
    """Share of the past in the moving average of the weights, then evaluated and published in their place; 0: none."""
    gradient_checkpointing: bool = False
    parallel: Literal["replicate", "shard"] = "replicate"
    """How several processes share one model: each holds all of it, or a share of every parameter (FSDP2). Like their
    number, it changes rounding only, and may change when a run is continued; the fingerprint leaves it out."""
    compile: bool = False
    """Train through torch.compile; rounding differs."""
    kernels: Literal["torch", "fla"] = "torch"
    """Who computes `recurrence` and `delta` in training steps: this library, or flash-linear-attention, which needs
    device "cuda". It is the run's choice, never the model's: evaluation and what is published always use torch."""

    def __post_init__(self) -> None:
        if not self.name or not all(character.isalnum() or character in "-_.+=" for character in self.name):
            raise ValueError(f"run: name is {self.name!r}; letters, digits and - _ . + = are allowed")
        if self.threads < 1:
            raise ValueError(f"run: threads is {self.threads}; at least 1 is needed")
        if self.accumulation < 1 or self.data.batch_size % self.accumulation:
            raise ValueError(
                f"run: accumulation is {self.accumulation}; a divisor of batch_size {self.data.batch_size} is needed"
            )
        if not 0 <= self.z_loss < math.inf:
            raise ValueError(f"run: z_loss is {self.z_loss}; a number that is not negative is needed")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"run: ema_decay is {self.ema_decay}; 0 or more and less than 1 is needed")
        if self.kernels == "fla" and self.device != "cuda":
            raise ValueError(f"run: kernels is 'fla', which needs device 'cuda'; device is '{self.device}'")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"run: seed is {self.seed}; 0 to 2^32 - 1 are allowed")
        read_model_config(self.model)

    @property
    def reads(self) -> Literal["text", "images"]:
        """What the data are."""
        return "text" if isinstance(self.data, Data) else "images"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, read back by `Run.from_json`."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def from_json(settings: Mapping[str, Any]) -> Run:
        """A run from JSON.

        Raises:
            ValueError: an unknown or missing key or a value that does not fit, with the nearest valid key.
        """
        return read_settings(Run, settings, "run")

    def fingerprint(self) -> str:
        """SHA-256 of everything but the name and `parallel`; what makes two runs the same training."""
        settings = Run.from_json(self.to_json()).to_json()  # a rate of 1 and a rate of 1.0 are the same
        del settings["name"], settings["parallel"]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def folder_name(self) -> str:
        """The name and the first digits of the fingerprint."""
        return f"{self.name}-{self.fingerprint()[:8]}"


def read_run(path: Path) -> Run:
    """The run in the JSON file `path`.

    Raises:
        ValueError: no such file, not JSON, or settings that `Run` refuses.
    """
    try:
        settings = json.loads(path.read_bytes())
    except OSError as problem:
        raise ValueError(f"run file '{path}' cannot be read: {problem.strerror}") from None
    except ValueError as problem:
        raise ValueError(f"run file '{path}' is not JSON: {problem}") from None
    return Run.from_json(settings)


def with_values(run: Run, values: Mapping[str, Any]) -> Run:
    """The run with dotted paths such as ``optimizer.lr`` or ``model.hidden_size`` replaced.

    Raises:
        ValueError: a path that does not exist (keys may be added only inside ``model``, ``objective``,
            ``data.corpora``, ``optimizer.settings`` and ``optimizer.roles``).
    """
    settings = run.to_json()
    for path, value in values.items():
        _set(settings, _keys(path), value, path)
    return Run.from_json(settings)


def _keys(path: str) -> list[str]:
    corpora = "data.corpora."
    if path.startswith(corpora):  # the name of a corpus may be a path, with dots of its own
        return ["data", "corpora", path.removeprefix(corpora)]
    return path.split(".")


def _set(settings: dict[str, Any], keys: list[str], value: Any, path: str) -> None:
    if keys[0] == "budget" and len(keys) == 2:
        settings["budget"] = dict.fromkeys(settings["budget"])  # a budget is one number; a new one replaces it
    if keys[:2] == ["model", "blocks"] and len(keys) > 2:
        settings["model"] = spell_out(settings["model"])
        settings["model"].setdefault("blocks", copy.deepcopy(DEFAULT_BLOCKS))
    if keys[:2] == ["model", "embedding"] and len(keys) == 3:
        settings["model"].setdefault("embedding", {})
    if keys[:2] == ["optimizer", "roles"] and len(keys) == 4:
        settings["optimizer"]["roles"].setdefault(keys[2], {})
    here = settings
    free = keys[0] in ("model", "objective") or keys[:2] in (
        ["data", "corpora"],
        ["optimizer", "settings"],
        ["optimizer", "roles"],
    )
    for key in keys[:-1]:
        if not isinstance(here.get(key), dict):
            raise ValueError(f"unknown setting '{path}'; {nearest(key, _dict_keys(here))}")
        here = here[key]
    if keys[-1] not in here and not free:
        raise ValueError(f"unknown setting '{path}'; {nearest(keys[-1], here)}")
    here[keys[-1]] = copy.deepcopy(value)  # the caller's stays as it is, whatever a later path sets in it


def _dict_keys(settings: Mapping[str, Any]) -> Iterable[str]:
    return [key for key, value in settings.items() if isinstance(value, dict)]


def parse_override(text: str) -> tuple[str, Any]:
    """``optimizer.lr=1e-3`` -> ("optimizer.lr", 0.001); the value is JSON, or a plain word.

    Raises:
        ValueError: no "=" in it.
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"override '{text}' has no '='; write path=value, such as optimizer.lr=1e-3")
    try:
        return path, json.loads(value)
    except ValueError:
        return path, value
