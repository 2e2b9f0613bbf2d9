"""What the charts of a report draw, as plain JSON; the drawing is done by the page itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, median
from typing import Any

from .result import ArmResult, SeedResult, StudyResult, Verdict
from .sensitivity import KNOWING_NOTHING

AXES = ("tokens", "flops", "seconds")
HUES = 7
"""Colours for arms beside the reference, which is drawn in the neutral ink 0."""


def levels(result: StudyResult) -> dict[str, list[ArmResult]]:
    """Reference -> itself and the arms compared with it, in the study's order; that of the study is the first."""
    compared = {verdict.arm: verdict.reference for verdict in result.verdicts}
    grouped: dict[str, list[ArmResult]] = {result.reference_arm: []}
    for arm in sorted(result.arms, key=lambda arm: arm.name in compared):
        grouped.setdefault(compared.get(arm.name, arm.name), []).append(arm)
    return grouped


def arm_styles(result: StudyResult) -> dict[str, dict[str, int]]:
    """One colour for each arm, everywhere; beyond the last hue and at the next level they return with another dash."""
    styles, dash = {}, 0
    for reference, arms in levels(result).items():
        others = [arm.name for arm in arms if arm.name != reference]
        styles[reference] = {"hue": 0, "dash": dash}
        styles |= {name: {"hue": 1 + i % HUES, "dash": dash + i // HUES} for i, name in enumerate(others)}
        dash += max(1, -(-len(others) // HUES))
    return styles


def ordered_arms(result: StudyResult) -> list[ArmResult]:
    """Level by level, each reference before the arms compared with it."""
    return [arm for arms in levels(result).values() for arm in arms]


def chart_data(result: StudyResult) -> dict[str, Any]:
    """Arms, learning curves, stability, tuning curves and baselines; arms are referred to by their number."""
    arms, styles = ordered_arms(result), arm_styles(result)
    bands = [band for i, arm in enumerate(arms) if (band := _band(i, arm))]
    return {
        "arms": [{"name": arm.name, **styles[arm.name]} for arm in arms],
        "bands": bands,
        "broken": [
            {"arm": i, "seed": run.seed, **_line([run])}
            for i, arm in enumerate(arms)
            for run in arm.seeds
            if run.status == "diverged" and run.curve
        ],
        "focus": max((band["high"][len(band["high"]) // 5] for band in bands), default=None),
        "baselines": [{"name": line.name, "value": line.bits_per_byte} for line in result.baselines],
        "stability": stability_charts(arms),
        "tuning": [tuning_chart(arms, key) for key in tuned_keys(result)],
    }


def _band(number: int, arm: ArmResult) -> dict[str, Any] | None:
    """Mean and range over the arm's finished seeds, at the steps that all of them recorded."""
    runs = [run for run in arm.seeds if run.status == "finished" and run.curve]
    return {"arm": number, "seeds": len(runs), **_line(runs)} if runs else None


def _line(runs: Sequence[SeedResult]) -> dict[str, list[float]]:
    steps = sorted(set.intersection(*({point.step for point in run.curve} for run in runs)))
    curves = [{point.step: point for point in run.curve} for run in runs]
    rows = [[curve[step] for curve in curves] for step in steps]
    axes = {axis: [fmean(getattr(point, axis) for point in row) for row in rows] for axis in AXES}
    return axes | _spread([[point.bits_per_byte for point in row] for row in rows])


def _spread(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Mean and range of each row."""
    return {"mean": [fmean(row) for row in rows], "low": [min(row) for row in rows], "high": [max(row) for row in rows]}


def stability_charts(arms: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """Gradient norms along the run, activations by layer; none where nothing was measured."""
    charts: list[dict[str, Any]] = [
        {
            "id": "gradients",
            "title": "Gradient norm",
            "axis": "tokens",
            "lines": [{"arm": i, **line} for i, arm in enumerate(arms) for line in _gradients(arm)],
        }
    ]
    for key, title in (("activation_rms", "Activations at the end, RMS"), ("activation_max", "Largest activation")):
        lines = [{"arm": i, **line} for i, arm in enumerate(arms) for line in _layers(arm, key)]
        charts.append({"id": key, "title": title, "axis": "layer", "lines": lines})
    for chart in charts:
        values = [value for line in chart["lines"] for value in (*line["low"], *line["high"])]
        chart["log"] = bool(values) and min(values) > 0 and max(values) >= 4 * min(values)
    return [chart for chart in charts if chart["lines"]]


def _gradients(arm: ArmResult) -> Iterator[dict[str, Any]]:
    """A band of the finished runs, and a line for each that broke."""
    known = [run for run in arm.seeds if run.stability is not None and run.stability.gradient_norms]
    finished = [run for run in known if run.status == "finished"]
    for runs in ([finished] if finished else []) + [[run] for run in known if run.status == "diverged"]:
        curves = [{p.step: p for p in run.stability.gradient_norms} for run in runs if run.stability is not None]
        rows = [[curve[step] for curve in curves] for step in sorted(set.intersection(*map(set, curves)))]
        yield {
            "x": [row[0].tokens for row in rows],
            "broken": runs[0].status == "diverged",
            **_spread([[point.norm for point in row] for row in rows]),
        }


def _layers(arm: ArmResult, key: str) -> Iterator[dict[str, Any]]:
    """Over the finished runs, at the layers where all of them saw finite numbers."""
    seen = [getattr(run.stability, key) for run in arm.seeds if run.status == "finished" and run.stability is not None]
    rows = [(layer, row) for layer, row in enumerate(zip(*seen, strict=True), 1) if None not in row]
    if rows:
        yield {"x": [layer for layer, _ in rows], "broken": False, **_spread([row for _, row in rows])}


def tuned_keys(result: StudyResult) -> list[str]:
    """The settings that were tuned, in the order in which arms name them."""
    return list(dict.fromkeys(key for arm in result.arms for point in arm.tuning for key in point.values))


def tuning_chart(arms: Sequence[ArmResult], key: str) -> dict[str, Any]:
    """For each arm the best bits per byte at each value of `key`, whatever the other tuned values are."""
    tried = [point.values[key] for arm in arms for point in arm.tuning if key in point.values]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in tried)
    values: list[Any] = sorted(set(tried)) if numeric else list(dict.fromkeys(map(str, tried)))
    lines = []
    for number, arm in enumerate(arms):
        best: dict[Any, float | None] = {}
        for point in arm.tuning:
            value = point.values.get(key) if numeric else str(point.values.get(key))
            scores = [score for score in (best.get(value), point.bits_per_byte) if score is not None]
            best[value] = min(scores, default=None)
        chosen = next((point.values.get(key) for point in arm.tuning if point.chosen), None)
        lines.append(
            {
                "arm": number,
                "scores": [best.get(value) for value in values],
                "diverged": [i for i, value in enumerate(values) if value in best and best[value] is None],
                "beyond": [i for i, value in enumerate(values) if (best.get(value) or 0) > KNOWING_NOTHING],
                "chosen": values.index(chosen if numeric else str(chosen)) if chosen is not None else None,
            }
        )
    log = numeric and values[0] > 0 and values[-1] >= 4 * values[0]
    return {"key": key, "numeric": numeric, "log": log, "values": values, "lines": lines}


def at_edge(arm: ArmResult) -> dict[str, Any]:
    """The chosen values at the edge of what was tried, so that a better one may lie beyond, by setting."""
    chosen = next((point for point in arm.tuning if point.chosen), None)
    edges = {}
    for key, value in chosen.values.items() if chosen else ():
        tried = {point.values[key] for point in arm.tuning if isinstance(point.values.get(key), int | float)}
        if len(tried) > 1 and value in (min(tried), max(tried)):
            edges[key] = value
    return edges


def forest(result: StudyResult) -> dict[str, Any]:
    """Where the differences lie on one axis, in percent of its width; zero is in the middle.

    One arm far from the others must not squeeze them, nor may an interval of two seeds: what lies beyond
    three times the median difference runs off the axis, without a cap there, or with an arrow for its mark.
    """
    interest = result.smallest_effect_of_interest
    sizes = [abs(v.difference) for v in result.verdicts if v.difference is not None]
    ends = [abs(end) for v in result.verdicts for end in v.interval or ()]
    widest = max([*sizes, *ends, 2 * interest])
    reach = 1.12 * min(widest, max(3 * median(sizes or [0.0]), 2 * interest))

    def share(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, value / reach)), 2)

    def row(verdict: Verdict) -> dict[str, Any]:
        assert verdict.difference is not None
        low, high = verdict.interval or (verdict.difference, verdict.difference)
        return {
            "low": share(low),
            "high": share(high),
            "caps": [share(end) for end in verdict.interval or () if abs(end) <= reach],
            "mark": share(verdict.difference),
            "beyond": abs(verdict.difference) > reach,
        }

    return {
        "rows": {v.arm: row(v) for v in result.verdicts if v.difference is not None},
        "band": (share(-interest), share(interest)),
        "tick": _round_number(reach),
        "ticks": (share(-_round_number(reach)), share(_round_number(reach))),
    }


def _round_number(reach: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten within 0.8 of the axis' reach."""
    power = 10.0 ** math.floor(math.log10(0.8 * reach))
    return next(digit * power for digit in (5, 2, 1) if digit * power <= 0.8 * reach)
