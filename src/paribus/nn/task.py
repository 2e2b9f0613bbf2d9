"""The contract of tasks: what stands around the backbone so that a model does one.

A task is one file of ``tasks``; the file's name is the task's, and it defines one subclass of `TaskModel`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from .backbone import ParibusModel, ParibusPreTrainedModel
from .config import ParibusConfig
from .registry import Registry
from .settings import read_settings

TASKS = Registry("tasks", __name__.rpartition(".")[0], Path(__file__).parent)


class TaskModel(ParibusPreTrainedModel):
    """A backbone called ``model`` and what the task puts on it.

    A subclass holds a frozen dataclass `Config`, read from the model's ``task``, makes its parts after
    ``super().__init__`` and then calls ``self.post_init()``. Its `forward` returns ``loss`` (the mean over targets) and
    ``losses`` (in training, the parts that `loss` is the sum of; one is the task's own and comes first).

    Raises:
        ValueError: a config of another task, a key or a value that the task does not know, a direction or an input
            that is not the task's.
    """

    Config: ClassVar[type[Any]]
    reads: ClassVar[Literal["text", "images"]]
    causal: ClassVar[bool]
    """Whether tokens see only those before them."""

    def __init__(self, config: ParibusConfig) -> None:
        super().__init__(config)
        name = type(self).task_name()
        if config.task["name"] != name:
            raise ValueError(f"model: task is '{config.task['name']}'; {type(self).__name__} is for '{name}'")
        if config.causal != self.causal:
            raise ValueError(
                f"model: causal is {str(config.causal).lower()}; the task {name} needs {str(self.causal).lower()}"
            )
        if (config.image is None) != (self.reads == "text"):
            given, needed = ("null", "its sizes") if config.image is None else ("given", "null")
            raise ValueError(f"model: image is {given}; the task {name} reads {self.reads} and needs {needed}")
        self.settings = self.settings_of(config)
        self.model = ParibusModel(config)

    @classmethod
    def settings_of(cls, config: ParibusConfig) -> Any:
        """The `Config` that a model's ``task`` holds beside the name.

        Raises:
            ValueError: a key or a value that the task does not know.
        """
        settings = {key: value for key, value in config.task.items() if key != "name"}
        return read_settings(cls.Config, settings, f"task {config.task['name']}")

    @classmethod
    def task_name(cls) -> str:
        """The name of the file that defines the task."""
        for base in cls.__mro__:
            folder, _, file = base.__module__.rpartition(".")
            if folder.endswith(f".{TASKS.kind}"):
                return file
            if file.startswith(f"{TASKS.kind}_"):  # in a published checkpoint, where all files are in one folder
                return file.removeprefix(f"{TASKS.kind}_")
        raise ValueError(f"{cls.__name__} is no task")


def task_model(config: ParibusConfig) -> type[TaskModel]:
    """The class of the models of a config.

    Raises:
        ValueError: an unknown task.
    """
    found: type[TaskModel] = TASKS.component(config.task["name"], TaskModel)
    return found
