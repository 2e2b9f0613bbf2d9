"""The model of a run."""

from __future__ import annotations

from paribus.nn.backbone import on_meta
from paribus.nn.initialization import initialize
from paribus.nn.model_settings import read_model_config
from paribus.nn.task import TaskModel, task_model

from .run import Run
from .task import make_task


def check_model(run: Run) -> None:
    """Build the model of `run` without memory.

    Raises:
        ValueError: a component, a size or a setting that does not exist or does not fit.
    """
    task = make_task(run)
    on_meta(task.config, task.model_class)
    if task.config.max_position_embeddings < task.sequence_length:
        raise ValueError(
            f"model: max_position_embeddings is {task.config.max_position_embeddings}; "
            f"data: sequence_length is {task.sequence_length} and must not be longer"
        )


def build_model(run: Run) -> TaskModel:
    """The model of `run` with its initial weights: a function of the run's seed and each parameter's name."""
    config = read_model_config(run.model)
    model = task_model(config)(config)
    initialize(model, run.seed, config.initialization)
    return model
