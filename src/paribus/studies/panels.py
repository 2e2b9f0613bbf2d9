"""How the arms of a result are laid out: levels, panels of one task, the matrix over conditions, colours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paribus.evaluation.metrics import METRICS

from .result import ArmResult, Baseline, StudyResult, Verdict

HUES = 7
"""Colours for arms beside the reference, which is drawn in the neutral ink 0."""


def title(metric: str) -> str:
    """What a metric is, as tables say it."""
    return METRICS[metric].title if metric in METRICS else metric.replace("_", " ")


def levels(result: StudyResult) -> dict[str, list[ArmResult]]:
    """Reference -> itself and the arms compared with it, in the study's order; that of the study is the first."""
    compared = {verdict.arm: verdict.reference for verdict in result.verdicts}
    grouped: dict[str, list[ArmResult]] = {result.reference_arm: []}
    for arm in sorted(result.arms, key=lambda arm: arm.name in compared):
        grouped.setdefault(compared.get(arm.name, arm.name), []).append(arm)
    return grouped


@dataclass(frozen=True)
class Panel:
    """Levels that share their axes: those of one task."""

    task: str
    metric: str
    curve_metric: str
    tuning_metric: str
    levels: dict[str, list[ArmResult]]
    baselines: tuple[Baseline, ...]
    """All of these levels, of whatever metric."""

    @property
    def arms(self) -> list[ArmResult]:
        """Level by level, each reference before the arms compared with it."""
        return [arm for arms in self.levels.values() for arm in arms]

    def lines(self, metric: str) -> list[Baseline]:
        """The baselines that have a score in `metric`."""
        return [line for line in self.baselines if line.metric == metric]

    def label(self, line: Baseline) -> str:
        """Its name, and of which levels it is, unless it is of all."""
        own = [reference for reference in self.levels if reference in line.references]
        return line.name if len(own) == len(self.levels) else f"{line.name}, beside {' and '.join(own)}"

    def other_metrics(self) -> list[str]:
        """What else the runs measured on the test split."""
        names = (name for arm in self.arms for run in arm.seeds for name in run.scores if name != self.metric)
        return list(dict.fromkeys(names))


def panels(result: StudyResult) -> list[Panel]:
    """One for each task, in the order of their levels."""
    grouped: dict[tuple[str, str, str, str], dict[str, list[ArmResult]]] = {}
    for reference, arms in levels(result).items():
        first = arms[0]
        key = (first.task, first.metric, first.curve_metric, first.tuning_metric)
        grouped.setdefault(key, {})[reference] = arms
    return [
        Panel(*key, found, tuple(line for line in result.baselines if found.keys() & set(line.references)))
        for key, found in grouped.items()
    ]


def ordered_arms(result: StudyResult) -> list[ArmResult]:
    """Panel by panel, level by level, each reference before the arms compared with it."""
    return [arm for panel in panels(result) for arm in panel.arms]


def arm_styles(result: StudyResult) -> dict[str, dict[str, int]]:
    """One colour for each arm, everywhere; beyond the last hue and at the next level they return with another dash."""
    styles = {}
    for panel in panels(result):
        dash = 0
        for reference, arms in panel.levels.items():
            others = [arm.name for arm in arms if arm.name != reference]
            styles[reference] = {"hue": 0, "dash": dash}
            styles |= {name: {"hue": 1 + i % HUES, "dash": dash + i // HUES} for i, name in enumerate(others)}
            dash += max(1, -(-len(others) // HUES))
    return styles


@dataclass(frozen=True)
class Matrix:
    """What is compared, in rows, by the conditions under which it is, in columns."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    metrics: dict[str, str]
    """Of each column."""
    cells: dict[tuple[str, str], tuple[ArmResult, Verdict | None]]
    """(row, column) -> the arm, and its verdict beside the reference of the column; None of a reference."""


def matrix(result: StudyResult) -> Matrix | None:
    """The arms of a study with conditions; None where all are compared with one reference."""
    if not result.within:
        return None
    verdicts = {verdict.arm: verdict for verdict in result.verdicts}
    cells = {}
    metrics = {}
    for arm in ordered_arms(result):
        column = _joined(arm.labels, result.within, inside=True)
        cells[_joined(arm.labels, result.within, inside=False), column] = (arm, verdicts.get(arm.name))
        metrics[column] = title(arm.metric)
    rows = dict.fromkeys(row for row, _ in cells)
    return Matrix(tuple(rows), tuple(metrics), metrics, cells)


def _joined(labels: Mapping[str, str], within: tuple[str, ...], *, inside: bool) -> str:
    return "+".join(label for factor, label in labels.items() if (factor in within) == inside)
