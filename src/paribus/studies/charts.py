"""What the charts of a report draw, as plain JSON; the drawing is done by the page itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from paribus.evaluation.metrics import METRICS

from .panels import Panel, arm_styles, ordered_arms, panels, title
from .result import ArmResult, SeedResult, StudyResult, Verdict

AXES = ("tokens", "flops", "seconds")


def chart_data(result: StudyResult) -> dict[str, Any]:
    """Arms, and panel by panel learning curves, stability and tuning curves; arms are referred to by their number."""
    arms, styles = ordered_arms(result), arm_styles(result)
    numbers = {arm.name: number for number, arm in enumerate(arms)}
    return {
        "arms": [{"name": arm.name, **styles[arm.name]} for arm in arms],
        "panels": [panel_data(panel, numbers) for panel in panels(result)],
    }


def panel_data(panel: Panel, numbers: Mapping[str, int]) -> dict[str, Any]:
    """What is drawn of the levels of one task."""
    arms = panel.arms
    bands = [band for arm in arms if (band := _band(numbers[arm.name], arm))]
    return {
        "arms": [numbers[arm.name] for arm in arms],
        "curve": title(panel.curve_metric),
        "tuned": title(panel.tuning_metric),
        "bands": bands,
        "broken": [
            {"arm": numbers[arm.name], "seed": run.seed, **_line([run])}
            for arm in arms
            for run in arm.seeds
            if run.status == "diverged" and run.curve
        ],
        "focus": max((band["high"][len(band["high"]) // 5] for band in bands), default=None),
        "baselines": [{"name": panel.label(line), "value": line.score} for line in panel.lines(panel.curve_metric)],
        "stability": stability_charts(arms, numbers),
        "tuning": [
            tuning_chart(arms, key, METRICS[panel.tuning_metric].knowing_nothing, numbers) for key in tuned_keys(arms)
        ],
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
    return axes | _spread([[point.score for point in row] for row in rows])


def _spread(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Mean and range of each row."""
    return {"mean": [fmean(row) for row in rows], "low": [min(row) for row in rows], "high": [max(row) for row in rows]}


def stability_charts(arms: Sequence[ArmResult], numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    """Gradient norms along the run, activations by layer; none where nothing was measured."""
    charts: list[dict[str, Any]] = [
        {
            "id": "gradients",
            "title": "Gradient norm",
            "axis": "tokens",
            "lines": [{"arm": numbers[arm.name], **line} for arm in arms for line in _gradients(arm)],
        }
    ]
    for key, name in (("activation_rms", "Activations at the end, RMS"), ("activation_max", "Largest activation")):
        lines = [{"arm": numbers[arm.name], **line} for arm in arms for line in _layers(arm, key)]
        charts.append({"id": key, "title": name, "axis": "layer", "lines": lines})
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


def tuned_keys(arms: Sequence[ArmResult]) -> list[str]:
    """The settings that were tuned, in the order in which arms name them."""
    return list(dict.fromkeys(key for arm in arms for point in arm.tuning for key in point.values))


def tuning_chart(
    arms: Sequence[ArmResult], key: str, ceiling: float | None, numbers: Mapping[str, int]
) -> dict[str, Any]:
    """For each arm the best score at each value of `key`, whatever the other tuned values are.

    Args:
        ceiling: scores above it are drawn like divergence; None: none are.
    """
    tried = [point.values[key] for arm in arms for point in arm.tuning if key in point.values]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in tried)
    values: list[Any] = sorted(set(tried)) if numeric else list(dict.fromkeys(map(str, tried)))
    lines = []
    for arm in arms:
        best: dict[Any, float | None] = {}
        for point in arm.tuning:
            value = point.values.get(key) if numeric else str(point.values.get(key))
            scores = [score for score in (best.get(value), point.score) if score is not None]
            best[value] = min(scores, default=None)
        chosen = next((point.values.get(key) for point in arm.tuning if point.chosen), None)
        lines.append(
            {
                "arm": numbers[arm.name],
                "scores": [best.get(value) for value in values],
                "diverged": [i for i, value in enumerate(values) if value in best and best[value] is None],
                "beyond": [] if ceiling is None else [i for i, v in enumerate(values) if (best.get(v) or 0) > ceiling],
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


def forest(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Where differences in one metric lie on one axis, in percent of its width; zero is in the middle.

    One arm far from the others must not squeeze them, nor may an interval of two seeds: what lies beyond
    three times the median difference runs off the axis, without a cap there, or with an arrow for its mark.
    """
    interest = max((v.smallest_effect_of_interest for v in verdicts), default=0.0)
    sizes = [abs(v.difference) for v in verdicts if v.difference is not None]
    ends = [abs(end) for v in verdicts for end in v.interval or ()]
    widest = max([*sizes, *ends, 2 * interest])
    reach = 1.12 * min(widest, max(3 * median(sizes or [0.0]), 2 * interest)) or 1.0

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
        "rows": {v.arm: row(v) for v in verdicts if v.difference is not None},
        "interest": interest,
        "band": (share(-interest), share(interest)),
        "tick": _round_number(reach),
        "ticks": (share(-_round_number(reach)), share(_round_number(reach))),
    }


def _round_number(reach: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten within 0.8 of the axis' reach."""
    power = 10.0 ** math.floor(math.log10(0.8 * reach))
    return next(digit * power for digit in (5, 2, 1) if digit * power <= 0.8 * reach)
