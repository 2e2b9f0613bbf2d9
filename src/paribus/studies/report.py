"""The page and the table that show a study's result; the page is one file that opens offline."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from paribus.evaluation.metrics import METRICS
from paribus.training.files import write_text

from . import charts, formats
from .panels import Panel, arm_styles, levels, matrix, ordered_arms, panels, title
from .result import PICTURE, ArmResult, StudyResult, Verdict
from .statistics import Outcome

FOLDER = Path(__file__).parent
OUTCOMES: dict[Outcome, dict[str, str]] = {
    "better": {"symbol": "✓", "style": "bold green", "sentence": "{who} {is} better than {reference}"},
    "worse": {"symbol": "✗", "style": "bold red", "sentence": "{who} {is} worse than {reference}"},
    "no difference shown": {
        "symbol": "≈",
        "style": "cyan",
        "sentence": "{who} {show} no difference from {reference}",
    },
    "inconclusive": {"symbol": "?", "style": "yellow", "sentence": "{who} {is} inconclusive"},
    "diverged": {"symbol": "∞", "style": "magenta", "sentence": "{who} diverged"},
}
"""How an outcome looks: a word, a symbol and a colour, so that nobody depends on seeing the colour."""


def headline(result: StudyResult) -> str:
    """The verdicts as one sentence: "gla is better than attention; tnn and hgrn1 are inconclusive."."""
    parts = []
    for reference in levels(result):
        for outcome, look in OUTCOMES.items():
            found = [verdict for verdict in result.verdicts if verdict.outcome == outcome]
            names = [verdict.arm for verdict in found if verdict.reference == reference]
            if names:
                who = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
                verbs = {"is": "are", "show": "show"} if len(names) > 1 else {"is": "is", "show": "shows"}
                parts.append(look["sentence"].format(who=who, reference=reference, **verbs))
    return "; ".join(parts) + "." if parts else "There is nothing to compare."


def cautions(result: StudyResult) -> list[str]:
    """What one must know beside the verdicts: confounds, grids too small, arms no better than a baseline."""
    found = [f"Not held equal: {confound}." for confound in result.audit.confounds]
    for panel in panels(result):
        for arm in panel.arms:
            found += [
                f"{arm.name}: the best {key} ({formats.setting(value)}) is at the edge of what was tried."
                for key, value in charts.at_edge(arm).items()
            ]
            found += [
                f"{arm.name} does not beat the trivial baseline {line.name} ({formats.score(line.score)})."
                for line in panel.lines(panel.metric)
                if arm.mean is not None and arm.mean >= line.score and _reference(result, arm) in line.references
            ]
    return found


def _reference(result: StudyResult, arm: ArmResult) -> str:
    return next((verdict.reference for verdict in result.verdicts if verdict.arm == arm.name), arm.name)


def tables(result: StudyResult) -> list[Table]:
    """For a terminal: what is compared by its conditions, if there are any; the verdicts of each task."""
    found = [] if (whole := matrix_table(result)) is None else [whole]
    found += [verdict_table(result, panel) for panel in panels(result)]
    found[0].title = Text(headline(result))
    return found


def verdict_table(result: StudyResult, panel: Panel) -> Table:
    """One line for each arm and each trivial baseline."""
    level = formats.percent(result.confidence)
    table = Table(caption=Text(f"{panel.task}: {title(panel.metric)} on the test split; lower is better"))
    table.add_column("arm")
    table.add_column("verdict")
    for name in (title(panel.metric), f"difference ({level})", "p (Holm)", "seeds"):
        table.add_column(name, justify="right")
    verdicts = {verdict.arm: verdict for verdict in result.verdicts}
    for arm in panel.arms:
        score = f"{formats.score(arm.mean)} {formats.half_width(arm.interval)}".strip()
        verdict = verdicts.get(arm.name)
        if verdict is None:
            table.add_section()
            table.add_row(Text(arm.name), "reference", score, "", "", str(_finished(arm)))
            continue
        difference = f"{formats.signed(verdict.difference)} {formats.half_width(verdict.interval)}".strip()
        p_value = formats.probability(verdict.adjusted_p_value)
        table.add_row(Text(arm.name), _outcome(verdict), score, difference, p_value, str(verdict.seeds))
    table.add_section()
    for line in panel.lines(panel.metric):
        table.add_row(Text(panel.label(line)), "baseline", formats.score(line.score), "", "", "", style="dim")
    return table


def _outcome(verdict: Verdict) -> Text:
    look = OUTCOMES[verdict.outcome]
    return Text(f"{look['symbol']} {verdict.outcome}", look["style"])


def matrix_table(result: StudyResult) -> Table | None:
    """Rows of what is compared, columns of the conditions; None without conditions."""
    found = matrix(result)
    if found is None:
        return None
    table = Table(caption=Text("each beside the reference of its column; means over seeds, lower is better"))
    table.add_column("")
    for column in found.columns:
        table.add_column(Text(f"{column}\n{found.metrics[column]}"), justify="right")
    for row in found.rows:
        table.add_row(Text(row), *[_cell(found.cells.get((row, column))) for column in found.columns])
        table.add_section()
    return table


def _cell(found: tuple[ArmResult, Verdict | None] | None) -> Text:
    if found is None:
        return Text(formats.NOTHING)
    arm, verdict = found
    score = f"{formats.score(arm.mean)} {formats.half_width(arm.interval)}".strip()
    outcome = Text("reference", "dim") if verdict is None else _outcome(verdict)
    costs = _costs(arm)
    speed = f"{formats.amount(costs['tokens_per_second'])} tokens/s, {formats.memory(costs['peak_memory_bytes'])}"
    return Text("\n").join([Text(score), outcome, Text(speed, "dim")])


def _costs(arm: ArmResult) -> dict[str, float | None]:
    """Speed, memory and size over the finished runs of an arm, or over all where none finished."""
    runs = [run for run in arm.seeds if run.status == "finished"] or list(arm.seeds)
    peaks = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    return {
        "tokens_per_second": fmean(run.tokens_per_second for run in runs),
        "peak_memory_bytes": max(peaks, default=None),
        "parameters": runs[0].parameters,
    }


def _finished(arm: ArmResult) -> int:
    return sum(run.status == "finished" for run in arm.seeds)


def render_report(result: StudyResult) -> str:
    """The report as one HTML page without any reference to another file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= formats.FILTERS | {"metric_title": title}
    scripts = [_asset("uplot/uPlot.iife.min.js"), _asset("report.js")]
    measured = [run.stability for arm in result.arms for run in arm.seeds if run.stability is not None]
    roles = list(dict.fromkeys(role for stability in measured for role in stability.update_ratios))
    shown = panels(result)
    context: dict[str, Any] = {
        "result": result,
        "headline": headline(result),
        "cautions": cautions(result),
        "arms": ordered_arms(result),
        "levels": levels(result),
        "panels": shown,
        "matrix": matrix(result),
        "costs": {arm.name: _costs(arm) for arm in result.arms},
        "verdicts": {verdict.arm: verdict for verdict in result.verdicts},
        "styles": arm_styles(result),
        "forests": [charts.forest([v for v in result.verdicts if v.reference in panel.levels]) for panel in shown],
        "charts": charts.chart_data(result),
        "outcomes": OUTCOMES,
        "roles": roles,
        "picture": PICTURE,
        "metrics": METRICS,
        "updates": {arm.name: _update_ratios(arm, roles) for arm in result.arms},
        "edges": {arm.name: charts.at_edge(arm) for arm in result.arms},
        "lengths": list(dict.fromkeys(n for arm in result.arms for run in arm.seeds for n in run.state_bytes)),
        "style_sheets": [_asset("uplot/uPlot.min.css"), _asset("report.css")],
        "scripts": scripts,
        "script_hashes": [_content_hash(script) for script in scripts],
    }
    return environment.get_template("report.html.jinja").render(context)


def _update_ratios(arm: ArmResult, roles: Sequence[str]) -> dict[str, list[float | None]]:
    """By role, that of each run; None where a run has no such parameters."""
    found = [run.stability.update_ratios for run in arm.seeds if run.stability is not None]
    return {role: [ratios.get(role) for ratios in found] for role in roles}


def _asset(name: str) -> Markup:
    """A file of our own, trusted not to be escaped."""
    return Markup((FOLDER / "assets" / name).read_text(encoding="utf-8"))


def _content_hash(script: str) -> str:
    """How a content security policy names the only scripts that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def write_report(result: StudyResult, path: Path) -> None:
    """Write the report to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render_report(result))
