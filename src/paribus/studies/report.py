"""The page and the table that show a study's result; the page is one file that opens offline."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from ..training.files import write_text
from . import charts, formats
from .result import ArmResult, StudyResult
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
    for reference in charts.levels(result):
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
    for arm in charts.ordered_arms(result):
        found += [
            f"{arm.name}: the best {key} ({formats.setting(value)}) is at the edge of what was tried."
            for key, value in charts.at_edge(arm).items()
        ]
        found += [
            f"{arm.name} does not beat the trivial baseline {line.name} ({formats.bits(line.bits_per_byte)})."
            for line in result.baselines
            if arm.mean is not None and arm.mean >= line.bits_per_byte
        ]
    return found


def verdict_table(result: StudyResult) -> Table:
    """The verdicts for a terminal: one line for each arm and each trivial baseline."""
    level = formats.percent(result.confidence)
    table = Table(title=Text(headline(result)), caption=Text(f"{result.metric}; lower is better"))
    table.add_column("arm")
    table.add_column("verdict")
    for title in ("bits per byte", f"difference ({level})", "p (Holm)", "seeds"):
        table.add_column(title, justify="right")
    verdicts = {verdict.arm: verdict for verdict in result.verdicts}
    for arm in charts.ordered_arms(result):
        score = f"{formats.bits(arm.mean)} {formats.half_width(arm.interval)}".strip()
        verdict = verdicts.get(arm.name)
        if verdict is None:
            table.add_section()
            table.add_row(Text(arm.name), "reference", score, "", "", str(_finished(arm)))
            continue
        look = OUTCOMES[verdict.outcome]
        difference = f"{formats.signed(verdict.difference)} {formats.half_width(verdict.interval)}".strip()
        p_value = formats.probability(verdict.adjusted_p_value)
        outcome = Text(f"{look['symbol']} {verdict.outcome}", look["style"])
        table.add_row(Text(arm.name), outcome, score, difference, p_value, str(verdict.seeds))
    table.add_section()
    for line in result.baselines:
        table.add_row(Text(line.name), "baseline", formats.bits(line.bits_per_byte), "", "", "", style="dim")
    return table


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
    environment.filters |= formats.FILTERS
    scripts = [_asset("uplot/uPlot.iife.min.js"), _asset("report.js")]
    measured = [run.stability for arm in result.arms for run in arm.seeds if run.stability is not None]
    roles = list(dict.fromkeys(role for stability in measured for role in stability.update_ratios))
    context: dict[str, Any] = {
        "result": result,
        "headline": headline(result),
        "cautions": cautions(result),
        "arms": charts.ordered_arms(result),
        "levels": charts.levels(result),
        "verdicts": {verdict.arm: verdict for verdict in result.verdicts},
        "styles": charts.arm_styles(result),
        "forest": charts.forest(result),
        "charts": charts.chart_data(result),
        "outcomes": OUTCOMES,
        "roles": roles,
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
