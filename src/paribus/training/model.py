"""The model of a run."""

from __future__ import annotations

from paribus.nn.backbone import on_meta
from paribus.nn.initialization import initialize
from paribus.nn.model_settings import read_model_config
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

from .run import Run


def check_model(run: Run) -> None:
    """Build the model of `run` without memory.

    Raises:
        ValueError: a component, a size or a setting that does not exist or does not fit.
    """
    config = read_model_config(run.model)
    on_meta(config, ParibusForCausalLM)
    if config.max_position_embeddings < run.data.sequence_length:
        raise ValueError(
            f"model: max_position_embeddings is {config.max_position_embeddings}; "
            f"data: sequence_length is {run.data.sequence_length} and must not be longer"
        )


def build_model(run: Run) -> ParibusForCausalLM:
    """The model of `run` with its initial weights: a function of the run's seed and each parameter's name."""
    config = read_model_config(run.model)
    model = ParibusForCausalLM(config)
    initialize(model, run.seed, config.initialization)
    return model
