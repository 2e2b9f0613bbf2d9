"""Conducting a study: tune every arm, train every seed, measure baselines, audit, judge, write result and report."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from paribus.training.files import write_text
from paribus.training.folder import find_run, outcome, read_record, read_result
from paribus.training.journal import read_journal
from paribus.training.run import Run, with_values
from paribus.training.task import make_task

from .audit import audit
from .equalizers import Equalized, equalize
from .executor import LocalExecutor, Task
from .progress import StudyProgress
from .report import write_report
from .result import (
    ArmResult,
    Baseline,
    CurvePoint,
    GradientPoint,
    SeedResult,
    Stability,
    StudyResult,
    TuningPoint,
    to_json,
)
from .sensitivity import PATH, failure_bounds, sensitivity
from .statistics import mean_interval
from .study import Study, seeded
from .tuning import best_values, extended
from .verdicts import DocumentCosts, judge

_EXTENSIONS = 3
"""How often a grid may be extended when its best value lies at an edge."""
_GRADIENT_POINTS = 40
"""Points of the curve of gradient norms that are kept of each run."""


@dataclass
class Workbench:
    """A study in progress below `root`: runs lie beside the study's own folder and are shared between studies."""

    name: str
    study: Study
    root: Path
    cache: Path
    executor: LocalExecutor
    progress: StudyProgress
    results: dict[Path, dict[str, Any]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where result.json and report.html go."""
        return self.root / self.name

    def task(self, run: Run) -> Task:
        """The folder where `run` is or will be."""
        return Task(run, find_run(self.root, run))

    def train(self, tasks: list[Task]) -> None:
        """Train what is not finished; results are kept by folder."""
        unique = list({task.folder: task for task in tasks if task.folder not in self.results}.values())
        self.progress.expect(len(unique))
        for task, result in self.executor.results(unique):
            self._check_measured(result)
            self.results[task.folder] = result
            self.progress.finished(task, _summary(result))

    def score(self, task: Task, split: str) -> float | None:
        """What decides there; None of a run that diverged."""
        result = self.results[task.folder]
        return None if result["scores"] is None else float(result["scores"][split][self.metric(task, split)])

    def metric(self, task: Task, split: str) -> str:
        """The study's metric where it is measured on `split`, else the task's own.

        A run that diverged measured nothing; what its task measures is then told by another of the same task.
        """
        own: str = self.results[task.folder]["metric"]
        if self.study.metric is None:
            return own
        found = (r["scores"] for r in self.results.values() if r["metric"] == own and r["scores"] is not None)
        measured = split == "test" or any(self.study.metric in scores[split] for scores in found)
        return self.study.metric if measured else own

    def _check_measured(self, result: Mapping[str, Any]) -> None:
        """At the first run that ends, not at the last: what decides is measured."""
        found = {} if result["scores"] is None else result["scores"]["test"]
        if self.study.metric is not None and found and self.study.metric not in found:
            raise ValueError(
                f"study: metric is '{self.study.metric}', which no run judged by {result['metric']} measures on the "
                f"test split; measured: {', '.join(found)}"
            )


def _summary(result: Mapping[str, Any]) -> str:
    done = outcome(result, "validation")
    return f"diverged: {done}" if result["status"] == "diverged" else f"{done}, {result['seconds']:.0f} s"


def conduct(bench: Workbench) -> StudyResult:
    """Do everything that `bench.study` asks; interrupted at any moment, the next call continues.

    Raises:
        ValueError: settings that do not fit; see `Study`, `equalize`, `train`.
        OSError: the disk or a process failed; what is finished stays.
    """
    study = bench.study
    equalized = equalize(study)
    tuned = _tune_arms(bench, equalized)
    chosen = {name: with_values(equalized.runs[name], tuned[name].values) for name in equalized.runs}
    tasks = {
        (name, seed): bench.task(seeded(run, seed, f"{bench.name}-{name}-s{seed}"))
        for seed in study.seeds
        for name, run in chosen.items()
    }
    bench.train(list(tasks.values()))
    firsts = {name: seeded(chosen[name], study.seeds[0], "baseline") for name in study.references().values()}
    baselines = tuple(_baselines(bench, firsts))
    arms = [
        _arm_result(bench, name, tuned[name], {s: tasks[name, s] for s in study.seeds}, baselines) for name in chosen
    ]
    result = StudyResult(
        name=bench.name,
        question=study.question,
        reference_arm=study.reference,
        within=study.within,
        equal=("parameters", "tokens") if study.equal == "parameters" else (study.equal,),
        confidence=study.confidence,
        arms=tuple(arms),
        verdicts=judge(
            arms,
            study.references(),
            _documents(bench, tasks),
            smallest_effect_of_interest=study.smallest_effect_of_interest,
            confidence=study.confidence,
        ),
        baselines=baselines,
        audit=audit(study, equalized, arms, {n: seeded(r, study.seeds[0], "audit") for n, r in chosen.items()}),
        environment=read_record(next(iter(tasks.values())).folder)["environment"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    bench.folder.mkdir(parents=True, exist_ok=True)
    write_text(bench.folder / "result.json", to_json(result))
    write_report(result, bench.folder / "report.html")
    return result


@dataclass(frozen=True)
class Tuned:
    """The values an arm was given, and the points that were tried."""

    values: dict[str, Any]
    points: tuple[TuningPoint, ...]


def _tune_arms(bench: Workbench, equalized: Equalized) -> dict[str, Tuned]:
    """Try each arm's grid on the tuning seed and the validation split; extend it at its edges."""
    study = bench.study
    grids = {name: study.grid(name) for name in equalized.runs}
    if not study.tune:
        return {name: Tuned({}, ()) for name in grids}
    tried: dict[str, list[TuningPoint]] = {}
    for _ in range(1 + _EXTENSIONS):
        tasks = {
            (name, index): (values, bench.task(_tuning_run(bench, equalized.runs[name], name, values)))
            for name, grid in grids.items()
            for index, values in enumerate(_combinations(grid))
        }
        bench.train([task for _, task in tasks.values()])
        tried = {name: [] for name in grids}
        for (name, _), (values, task) in tasks.items():
            diverged = bench.results[task.folder]["status"] == "diverged"
            tried[name].append(TuningPoint(values, bench.score(task, "validation"), study.tuning_seed, False, diverged))
        wider = {name: extended(grids[name], best_values(tried[name])) for name in grids}
        if wider == grids:
            break
        grids = wider
    return {name: _choose(points) for name, points in tried.items()}


def _choose(points: list[TuningPoint]) -> Tuned:
    """The best point. Where all diverged, it is the last, to which the grid grew: that the arm diverges is a result."""
    best = best_values(points) or points[-1].values
    marked = tuple(TuningPoint(p.values, p.score, p.seed, p.values == best, p.diverged) for p in points)
    return Tuned(best, marked)


def _combinations(grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _tuning_run(bench: Workbench, run: Run, arm: str, values: Mapping[str, Any]) -> Run:
    words = "-".join(f"{path.rpartition('.')[2]}={_word(value)}" for path, value in values.items())
    return seeded(with_values(run, values), bench.study.tuning_seed, f"{bench.name}-{arm}-tune-{words}")


def _word(value: Any) -> str:
    """A value as part of a run's name, which identifies nothing: the fingerprint does."""
    return f"{value:g}" if isinstance(value, float) else re.sub(r"[^a-zA-Z0-9_.+-]+", "_", str(value))[:40]


def _arm_result(
    bench: Workbench, name: str, tuned: Tuned, tasks: Mapping[int, Task], baselines: Sequence[Baseline]
) -> ArmResult:
    seeds = tuple(_seed_result(bench, seed, task) for seed, task in tasks.items())
    scores = [seed.score for seed in seeds if seed.score is not None]
    mean, interval = mean_interval(scores, bench.study.confidence) if scores else (None, None)
    samples = [bench.results[task.folder]["sample"] for task in tasks.values()]
    grid = bench.study.grid(name).get(PATH)
    first = next(iter(tasks.values()))
    metric = bench.metric(first, "validation")
    beside = [line for line in baselines if bench.study.references()[name] in line.references]
    return ArmResult(
        name=name,
        task=make_task(first.run).config.task["name"],
        metric=bench.metric(first, "test"),
        curve_metric=bench.results[first.folder]["metric"],
        tuning_metric=metric,
        labels=bench.study.labels()[name],
        settings=bench.study.arms()[name],
        seeds=seeds,
        tuning=tuned.points,
        sample=next((sample for sample in samples if sample), ""),
        mean=mean,
        interval=interval,
        sensitivity=sensitivity(tuned.points, grid, *failure_bounds(metric, beside)) if grid else None,
    )


def _seed_result(bench: Workbench, seed: int, task: Task) -> SeedResult:
    result = bench.results[task.folder]
    journal = read_journal(task.folder / "journal.jsonl")
    curve = [
        CurvePoint(event["step"], event["tokens"], event["flops"], event["seconds"], event["score"])
        for event in journal
        if event["event"] == "evaluate"
    ]
    return SeedResult(
        seed=seed,
        run_folder=str(task.folder),
        status=result["status"],
        divergence=result["divergence"],
        score=bench.score(task, "test"),
        parameters=result["parameters"],
        flops_per_token=result["flops_per_token"],
        tokens=result["tokens"],
        flops=result["flops"],
        seconds=result["seconds"],
        tokens_per_second=result["tokens_per_second"],
        peak_memory_bytes=result["peak_memory_bytes"],
        state_bytes=result["state_bytes"],
        curve=tuple(curve),
        optimizer_state_bytes=result.get("optimizer_state_bytes"),
        stability=_stability(result, journal) if "stability" in result else None,
        scores={} if result["scores"] is None else dict(result["scores"]["test"]),
    )


def _stability(result: Mapping[str, Any], journal: Sequence[Mapping[str, Any]]) -> Stability:
    """What the run measured, with its gradient norms thinned: one point for each of equal stretches of the run."""
    largest: dict[int, GradientPoint] = {}
    for event in journal:
        if event["event"] == "train" and event["gradient_norm"] is not None:
            stretch = math.ceil(event["step"] * _GRADIENT_POINTS / result["total_steps"])
            before = largest.get(stretch)
            norm = event["gradient_norm"] if before is None else max(before.norm, event["gradient_norm"])
            largest[stretch] = GradientPoint(event["step"], event["tokens"], norm)
    measured = result["stability"]
    return Stability(
        spikes=tuple(measured["spikes"]),
        skipped_steps=measured["skipped_steps"],
        first_not_finite_step=measured["first_not_finite_step"],
        max_gradient_norm=measured["max_gradient_norm"],
        update_ratios=measured["update_ratios"],
        activation_rms=tuple(measured["activation_rms"]["last"]),
        activation_max=tuple(measured["activation_max"]["max"]),
        gradient_norms=tuple(largest.values()),
    )


def _documents(bench: Workbench, tasks: Mapping[tuple[str, int], Task]) -> dict[str, dict[int, DocumentCosts]]:
    """By arm and seed, what each test document cost; none where what decides is no mean over them."""
    found: dict[str, dict[int, DocumentCosts]] = {}
    for (name, seed), task in tasks.items():
        result = bench.results[task.folder]
        if result["documents"] and bench.metric(task, "test") == result["metric"]:
            costs, weights = (np.array([document[i] for document in result["documents"]]) for i in (1, 2))
            found.setdefault(name, {})[seed] = DocumentCosts(costs, weights)
    return found


def _baselines(bench: Workbench, runs: Mapping[str, Run]) -> Iterator[Baseline]:
    """Trivial predictors, made from exactly what each reference read with its first seed; once where that is the same.

    Args:
        runs: by reference, the run with its first seed.
    """
    groups: dict[str, list[str]] = {}
    steps = {}
    for name, run in runs.items():
        result = read_result(find_run(bench.root, run))
        assert result is not None, "the references have been trained"
        steps[name] = result["total_steps"]
        config = make_task(run).config
        read = (config.task, config.image, run.data, run.objective, run.evaluation, steps[name])
        groups.setdefault(repr(read), []).append(name)
    for names in groups.values():
        task = make_task(runs[names[0]])
        for line in task.baselines(bench.study.baseline_orders, steps[names[0]], bench.cache):
            yield Baseline(line.name, line.score, line.description, task.metric, tuple(names))
