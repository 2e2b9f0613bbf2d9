"""A result over several tasks: panels, the matrix, the page and the terminal."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from paribus.evaluation.metrics import METRICS
from paribus.studies import charts, panels, report
from paribus.studies.result import StudyResult, from_json, to_json
from tests.unit.studies.example_study import DIGITS, HOSTILE, baseline, example_study, example_tasks
from tests.unit.studies.test_report import Page, leveled


@pytest.fixture(scope="module")
def tasks() -> StudyResult:
    return example_tasks()


def test_each_task_has_a_panel(tasks: StudyResult) -> None:
    text, images = panels.panels(tasks)
    assert (text.task, text.metric, list(text.levels)) == ("causal_lm", "bits_per_byte", ["attention+text"])
    assert (images.task, images.metric) == ("image_classification", "error_rate")
    assert [arm.name for arm in images.arms] == ["attention+digits", "gla+digits"]
    assert [line.name for line in text.lines("bits_per_byte")] == ["byte 5-gram", "byte frequencies"]
    assert [line.name for line in images.baselines] == ["most frequent class"]
    assert (text.other_metrics(), images.other_metrics()) == (["cross_entropy"], [])
    styles = panels.arm_styles(tasks)
    assert styles["gla+text"] == styles["gla+digits"] == {"hue": 1, "dash": 0}, "a panel each"


def test_a_baseline_of_some_levels_says_so(tasks: StudyResult) -> None:
    (panel, _) = panels.panels(tasks)
    both = dataclasses.replace(panel, levels={**panel.levels, "attention+other": panel.arms})
    line = panel.baselines[0]
    assert panel.label(line) == "byte 5-gram"
    assert both.label(line) == "byte 5-gram, beside attention+text"
    assert both.label(dataclasses.replace(line, references=("attention+text", "attention+other"))) == "byte 5-gram"


def test_the_matrix(tasks: StudyResult) -> None:
    found = panels.matrix(tasks)
    assert found is not None
    assert (found.rows, found.columns) == (("attention", "gla"), ("text", "digits"))
    assert found.metrics == {"text": "bits per byte", "digits": METRICS["error_rate"].title}
    outcomes = {key: verdict and verdict.outcome for key, (_, verdict) in found.cells.items()}
    assert outcomes == {
        ("attention", "text"): None,
        ("gla", "text"): "better",
        ("attention", "digits"): None,
        ("gla", "digits"): "diverged",
    }
    assert panels.matrix(example_study()) is None


def test_two_conditions_are_one_column(tasks: StudyResult) -> None:
    arms = tuple(dataclasses.replace(a, labels={"depth": "2", **a.labels, "seen": "all"}) for a in tasks.arms)
    found = panels.matrix(dataclasses.replace(tasks, arms=arms, within=("task", "depth")))
    assert found is not None
    assert (found.rows, found.columns) == (("attention+all", "gla+all"), ("2+text", "2+digits"))


def test_the_effect_of_interest_is_of_the_metric(tasks: StudyResult) -> None:
    found = {verdict.arm: verdict.smallest_effect_of_interest for verdict in tasks.verdicts}
    assert found == {"gla+text": 0.01, "gla+digits": 0.005}
    assert all(verdict.bootstrap_interval is None for verdict in tasks.verdicts), "no documents were given"


def test_the_page_of_several_tasks(tasks: StudyResult) -> None:
    assert from_json(to_json(tasks)) == tasks
    page = report.render_report(tasks)
    text = " ".join(Page(page).text.split())
    for part in (
        "Bits per byte, share of images misclassified on the test split, lower is better.",
        "gla+text is better than attention+text; gla+digits diverged.",
        "9.1 k tokens/s · 393 MiB", "312 k parameters", "Other measurements on the test split", "1.4000",
        "most frequent class", "±0.005, the smallest effect of interest", "knowing nothing",
    ):  # fmt: skip
        assert part in text, part
    sources = [attributes.get("src") for tag, attributes in Page(page).tags if tag == "img"]
    assert sources == [DIGITS, DIGITS]
    assert DIGITS not in text
    assert "img-src data:" in page
    for at in (0, 1):
        assert f'id="curves-chart-{at}"' in page and f'data-panel="{at}"' in page
    first, second = charts.chart_data(tasks)["panels"]
    assert (first["arms"], second["arms"]) == ([0, 1], [2, 3])
    assert (first["curve"], second["tuned"]) == ("bits per byte", METRICS["error_rate"].title)
    assert {line["arm"] for line in second["bands"] + second["broken"]} == {2, 3}


def test_a_page_says_bits_per_byte_only_where_that_is_measured(tasks: StudyResult) -> None:
    keep = [arm for arm in tasks.arms if arm.task == "image_classification"]
    only = dataclasses.replace(
        tasks,
        reference_arm="attention+digits",
        arms=tuple(keep),
        verdicts=tasks.verdicts[1:],
        baselines=tasks.baselines[2:],
        within=(),
    )
    assert "per byte" not in report.render_report(only).lower()
    assert "per byte" in report.render_report(tasks).lower()


def test_a_picture_from_elsewhere_is_text(tasks: StudyResult) -> None:
    """Nothing is asked of the network, whatever a run calls its sample."""
    arm = dataclasses.replace(tasks.arms[2], sample="https://example.org/x.png")
    page = Page(report.render_report(dataclasses.replace(tasks, arms=(*tasks.arms[:2], arm, tasks.arms[3]))))
    assert [a["src"] for tag, a in page.tags if tag == "img"] == [DIGITS]
    assert "https://example.org/x.png" in page.text


def test_the_terminal_shows_the_matrix_and_a_table_for_each_task(tasks: StudyResult) -> None:
    output = io.StringIO()
    Console(file=output, width=150).print(*report.tables(tasks))
    printed = output.getvalue()
    whole, *rest = printed.split("each beside the reference of its column")
    for part in ("text", "digits", "✓ better", "∞ diverged", "tokens/s, 393 MiB", "gla+digits diverged."):
        assert part in whole, part
    assert "causal_lm: bits per byte on the test split; lower is better" in rest[0]
    assert "image_classification: share of images misclassified on the test split" in rest[0]


def test_cautions_are_of_an_arms_own_level(tasks: StudyResult) -> None:
    weak = [dataclasses.replace(line, score=0.04) for line in tasks.baselines]
    found = report.cautions(dataclasses.replace(tasks, baselines=tuple(weak)))
    beaten = [line for line in found if "does not beat" in line]
    assert len(beaten) == 2 * 2 + 2
    assert "gla+digits does not beat the trivial baseline most frequent class (0.0400)." in beaten
    assert not any("digits" in line and "byte" in line for line in beaten)


def test_cautions_of_two_levels_of_one_task() -> None:
    study = leveled(example_study())
    low = dataclasses.replace(study, baselines=(baseline("byte 9-gram", 2.0),))
    beaten = {line.split(" does not beat")[0] for line in report.cautions(low) if "does not beat" in line}
    assert beaten == {"attention", "gla", HOSTILE, "hgrn1"}, "mlp_mixer and tnn have another reference"
