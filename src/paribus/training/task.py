"""What a task asks of the laboratory: data, inputs of the model, what is measured.

``nn/tasks/NAME.py`` has the model of a task, ``training/tasks/NAME.py`` how it is trained and judged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from paribus.nn.config import ParibusConfig
from paribus.nn.model_settings import read_model_config
from paribus.nn.registry import Registry
from paribus.nn.settings import read_settings
from paribus.nn.task import TaskModel, task_model

from .run import Run

OBJECTIVES = Registry("tasks", "paribus.training", Path(__file__).parent)


class Batches(Protocol):
    """All batches of a run: batch t is a pure function of the data settings and t."""

    def batch(self, step: int) -> Any:
        """Batch number `step`, from 0."""

    def digest(self, batch: Any) -> str:
        """A short hash of what is in a batch."""

    def epochs_at(self, step: int) -> dict[str, float]:
        """How often each source has been read when `step` batches have been."""

    def manifests(self) -> dict[str, Any]:
        """What identifies the data, for the run's record: JSON, the sources by name under "corpora"."""


@dataclass(frozen=True)
class Inputs:
    """One batch as the model takes it, of all processes and pieces together."""

    tensors: dict[str, Tensor | None]
    """Arguments of the model, rows first."""
    num_targets: Tensor
    """[B], how many targets each row has: what a row weighs in the mean that the loss is."""


@dataclass(frozen=True)
class Quality:
    """What result.json says of how good a trained model is."""

    scores: dict[str, dict[str, float]]
    """Split ("validation", "test") -> metric -> value; the task's own metric is in both."""
    documents: list[list[Any]]
    """Of each test document or image [its source, its cost, its weight]; the metric is Σ cost / Σ weight. Empty where
    the metric is no such mean."""
    sample: str | None = None
    """Something to look at: text, or a picture as a data: URI."""
    details: dict[str, Any] | None = None
    """What else was found out: JSON."""


class Measure(ABC):
    """What is held out of a run's data, and what to ask of a model there."""

    @property
    @abstractmethod
    def documents_sha256(self) -> dict[str, str]:
        """By split, a hash of what is measured on, in its order."""

    @abstractmethod
    def validation(self, model: Any) -> float:
        """The task's metric on the validation split."""

    @abstractmethod
    def quality(self, model: Any) -> Quality:
        """Everything that is measured at the end."""


@dataclass(frozen=True)
class TrivialBaseline:
    """A predictor that learns next to nothing, on what the arms are judged on."""

    name: str
    score: float
    description: str


class Task(ABC):
    """A task of one run.

    A subclass lives alone in its file and holds a frozen dataclass `Objective`, read from the run's ``objective``.

    Raises:
        ValueError: an objective that the task does not know, or data of the wrong kind.
    """

    Objective: ClassVar[type[Any]]
    metric: ClassVar[str]
    """What decides, one of `paribus.evaluation.metrics.METRICS`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config: ParibusConfig = read_model_config(run.model)
        name = self.config.task["name"]
        self.objective = read_settings(self.Objective, run.objective, f"objective of {name}")
        reads = self.model_class.reads
        if run.reads != reads:
            key = "corpora" if reads == "text" else "images"
            raise ValueError(f"data: the task {name} reads {reads}; the key '{key}' is needed")

    @property
    def model_class(self) -> type[TaskModel]:
        """The class of the run's model."""
        return task_model(self.config)

    @property
    @abstractmethod
    def sequence_length(self) -> int:
        """Tokens of one row."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one batch."""
        return self.run.data.batch_size * self.sequence_length

    @property
    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What else the model is called with in training, the same in every step."""

    @abstractmethod
    def batches(self, cache: Path) -> Batches:
        """The run's data, checked to fit the model.

        Raises:
            ValueError: it cannot be read, or does not fit.
        """

    @abstractmethod
    def inputs(self, batch: Any, step: int) -> Inputs:
        """What the model is given of batch number `step`: a function of the run, the batch and the step."""

    @abstractmethod
    def example(self) -> dict[str, Tensor]:
        """Arguments of the model for one row with its targets, of any values: what a row costs is counted on it."""

    @abstractmethod
    def measure(self, cache: Path) -> Measure:
        """What is held out, and how a model is judged on it."""

    @abstractmethod
    def baselines(self, orders: tuple[int, ...], steps: int, cache: Path) -> Iterator[TrivialBaseline]:
        """Trivial predictors on the test split, made from what `steps` batches show.

        Args:
            orders: of byte n-grams, where the task knows such.
        """


def make_task(run: Run) -> Task:
    """The task of `run`.

    Raises:
        ValueError: an unknown task, or settings that do not fit it.
    """
    config = read_model_config(run.model)
    found: type[Task] = OBJECTIVES.component(config.task["name"], Task)
    return found(run)
