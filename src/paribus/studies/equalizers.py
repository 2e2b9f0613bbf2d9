"""What is matched between arms, solved and recorded."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from paribus.evaluation.cost import training_flops
from paribus.nn.backbone import on_meta, parameter_count
from paribus.nn.component import CHANNELS
from paribus.nn.mixer import Mixer
from paribus.nn.model_settings import read_model_config
from paribus.nn.task import task_model
from paribus.training.model import build_model, check_model
from paribus.training.run import Run, with_values
from paribus.training.task import make_task

from .study import Equalizer, Study

TOLERANCE = 0.005
"""Totals of parameters agree within this share of the reference's."""


@dataclass(frozen=True)
class Equalized:
    """The runs of all arms after equalizing, and what was solved in each."""

    runs: dict[str, Run]
    solved: dict[str, dict[str, Any]]


def equalize(study: Study) -> Equalized:
    """Match every arm to its reference as ``study.equal`` demands.

    Raises:
        ValueError: an arm that does not fit, of another task than its reference, whose size cannot be brought within
            tolerance, or that is the same run as another once all is equal.
    """
    runs, solved = {}, {}
    for name in study.arms():
        with _naming(name):
            runs[name] = study.arm_run(name)
            check_model(runs[name])
    _refuse_other_tasks(study, runs)
    for name, reference in study.references().items():
        with _naming(name):
            solved[name] = {} if name == reference else _solve(study.equal, runs[name], runs[reference])
    runs = {name: with_values(run, solved[name]) for name, run in runs.items()}
    _refuse_twins(runs)
    return Equalized(runs, solved)


@contextmanager
def _naming(arm: str) -> Iterator[None]:
    """Errors begin with the name of the arm."""
    try:
        yield
    except ValueError as problem:
        raise ValueError(f"arm '{arm}': {problem}") from None


def _refuse_other_tasks(study: Study, runs: Mapping[str, Run]) -> None:
    """Scores of two tasks are two kinds of numbers."""
    labels = study.labels()
    for name, reference in study.references().items():
        tasks = [read_model_config(runs[arm].model).task["name"] for arm in (name, reference)]
        if tasks[0] != tasks[1]:
            differing = [factor for factor in labels[name] if labels[name][factor] != labels[reference][factor]]
            raise ValueError(
                f"arm '{name}': its task is {tasks[0]}, and that of its reference '{reference}' is {tasks[1]}; name "
                f"the factor that sets the task ({' or '.join(differing)}) in within"
            )


def _solve(equal: Equalizer, run: Run, reference: Run) -> dict[str, Any]:
    """Dotted path -> value: what makes `run` equal to the reference."""
    if equal == "parameters":
        return _match_parameters(run, reference)
    return _match_flops(run, reference) if equal == "flops" else {}


def _refuse_twins(runs: Mapping[str, Run]) -> None:
    first: dict[str, str] = {}
    for name, run in runs.items():
        twin = first.setdefault(run.fingerprint(), name)
        if twin != name:
            raise ValueError(f"arms '{twin}' and '{name}' are the same run; a study compares different ones")


def count_parameters(run: Run) -> int:
    """Parameters of the model of `run`, counted without memory."""
    config = read_model_config(run.model)
    return parameter_count(on_meta(config, task_model(config)))


def _match_parameters(run: Run, reference: Run) -> dict[str, Any]:
    """The channel expansions, all scaled by one factor, at which the parameters equal the reference's."""
    target, own = count_parameters(reference), count_parameters(run)
    if own == target:
        return {}
    expansions = _expansions(run)

    @functools.cache
    def count_of(*values: tuple[str, float]) -> int:
        return count_parameters(with_values(run, dict(values)))

    def count_at(factor: float) -> int:
        return count_of(*_values(run, expansions, factor).items())  # of many factors the whole channels are the same

    low, high = 0.0, 1.0
    while count_at(high) < target:
        low, high = high, high * 2
        if high > 1024:
            raise ValueError(f"no channel width gives the reference's {target:,} parameters")
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if count_at(middle) < target else (low, middle)
    best = min((low, high), key=lambda factor: abs(count_at(factor) - target))
    count = count_at(best)
    if abs(count - target) > TOLERANCE * target:
        raise ValueError(
            f"parameters cannot be matched: {count:,} at best beside the reference's {target:,}; "
            "change the sizes of its mixer"
        )
    if abs(own - target) <= abs(count - target):
        return {}  # some norm weights more or less, which no whole inner channel outweighs
    return _values(run, expansions, best)


def _expansions(run: Run) -> dict[str, float]:
    """Block name -> the expansion of its channel mixer, where it has one."""
    config = read_model_config(run.model)
    found = {}
    for name in sorted(set(config.layer_blocks())):
        channel = config.block(name).channel
        if channel is not None:
            component = CHANNELS.component(channel["name"], Mixer)
            preset = getattr(CHANNELS.module(channel["name"]), "PRESETS", {}).get(channel.get("preset"), {})
            expansion = {**preset, **channel}.get("expansion", component.Config().expansion)
            found[name] = float(expansion)
    if not found:
        raise ValueError("no block has a channel mixer, whose width is what matches sizes; compare at equal='flops'")
    return found


def _values(run: Run, expansions: dict[str, float], factor: float) -> dict[str, Any]:
    """Dotted path -> expansion, rounded to whole inner channels (at least one)."""
    width = read_model_config(run.model).hidden_size
    return {
        f"model.blocks.{name}.channel.expansion": max(1, round(expansion * factor * width)) / width
        for name, expansion in expansions.items()
    }


def _match_flops(run: Run, reference: Run) -> dict[str, Any]:
    """The steps at which the run spends the FLOPs that the reference spends."""
    spent, own = _flops_per_step(reference), _flops_per_step(run)
    budget = reference.budget
    tokens = make_task(reference).tokens_per_step
    if budget.flops is not None:
        return {}
    steps = budget.steps if budget.steps is not None else round((budget.tokens or 0) / tokens)
    return {"budget.steps": max(1, round(steps * spent / own))}


def _flops_per_step(run: Run) -> float:
    task = make_task(run)
    return training_flops(build_model(run), task.example(), task.arguments) * run.data.batch_size
