"""The report's page and table, read as text; how it looks in a browser is a system test."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from paribus.studies import charts, formats, panels, report
from paribus.studies.result import PICTURE, Audit, StudyResult, TuningPoint
from tests.unit.studies.example_study import HOSTILE, baseline, example_study


@pytest.fixture(scope="module")
def study() -> StudyResult:
    return example_study()


@pytest.fixture(scope="module")
def page(study: StudyResult) -> str:
    return report.render_report(study)


class Page(HTMLParser):
    """What a browser sees: visible text, tags and their attributes, and the content of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.text += data


def test_names_are_text_and_never_markup(page: str, study: StudyResult) -> None:
    seen = Page(page)
    assert len(seen.scripts) == 3
    data, *code = seen.scripts
    assert json.loads(data) == charts.chart_data(study)
    assert not any("alert(" in script for script in code)
    assert HOSTILE in seen.text
    assert all(arm.sample in seen.text for arm in study.arms)


def test_the_page_needs_no_other_file(page: str) -> None:
    for tag, attributes in Page(page).tags:
        assert (attributes.get("src") or PICTURE).startswith(PICTURE), tag
        assert (attributes.get("href") or "#").startswith(("#", "data:")), attributes
    styles = "".join(re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles


def test_only_the_two_scripts_of_the_report_may_run(page: str) -> None:
    policy = next(a["content"] for tag, a in Page(page).tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    allowed = re.search(r"script-src (.*)$", policy).group(1)
    code = Page(page).scripts[1:]
    assert allowed == " ".join(f"'{report._content_hash(script)}'" for script in code)


def test_everything_is_there_without_scripts(page: str, study: StudyResult) -> None:
    text = " ".join(Page(page).text.split())
    assert text.index("gla is better than attention") < text.index("What differs") < text.index("def forward")
    for verdict in study.verdicts:
        assert verdict.reason in text
    for part in (
        "2.1087 ± 0.0112", "−0.0430", "−0.0473 to −0.0387", "0.0016", "byte 5-gram", "+0.7193", "declared",
        "confound", "5d41402abc4b2a76b9719d911017c592ae0f", "61.5 %", "channel.inner_size", "16 MiB",
        "1 of 2, at step 260", "6 in 3 of 3 runs", "Update by weight, matrix", "2.38 MiB", "not measured",
        "none up to 0.01", "above 4.9020, which the weakest trivial baseline reaches", "0.0003, 0.001, 0.003, 0.01",
        "312,348", "chosen, at the edge", "diverged", "loss was NaN at step 260", "2.13.0",
        "2000-01-01T12:00:00+00:00",
    ):  # fmt: skip
        assert part in text, part
    assert not re.search(r"\b(nan|None|Undefined)\b", text.replace("loss was NaN", ""))


def test_headline_and_cautions(study: StudyResult) -> None:
    assert report.headline(study) == (
        "gla is better than attention; tnn is worse than attention; "
        f"{HOSTILE} shows no difference from attention; mlp_mixer is inconclusive; hgrn1 diverged."
    )
    verdicts = [dataclasses.replace(verdict, outcome="better") for verdict in study.verdicts[2:]]
    several = dataclasses.replace(study, verdicts=tuple(verdicts))
    assert report.headline(several) == "hgrn1, mlp_mixer and tnn are better than attention."
    hard = dataclasses.replace(study, baselines=(baseline("byte 9-gram", 2.3),))
    assert report.cautions(hard) == [
        "Not held equal: data.tokenizer is 'byte-2' in tnn and 'byte' elsewhere & was not declared.",
        "gla: the best optimizer.lr (0.01) is at the edge of what was tried.",
        "mlp_mixer does not beat the trivial baseline byte 9-gram (2.3000).",
    ]


def test_a_bare_study_has_a_page_too(study: StudyResult) -> None:
    """One arm, nothing finished, nothing tuned, no audit: still a page, and no exception on the way."""
    broken = next(arm for arm in study.arms if arm.name == "hgrn1")
    only = dataclasses.replace(broken, seeds=broken.seeds[1:], tuning=(), sample="", mean=None)
    bare = dataclasses.replace(
        study, reference_arm="hgrn1", arms=(only,), verdicts=(), baselines=study.baselines[:1],
        environment={}, audit=Audit((), (), (), (), {}, {}, {}),
    )  # fmt: skip
    text = Page(report.render_report(bare)).text
    for part in (
        "There is nothing to compare.",
        "Nothing was tuned.",
        "No sample.",
        "Nothing differs beyond",
    ):
        assert part in text


def test_the_table_for_a_terminal(study: StudyResult) -> None:
    named = dataclasses.replace(study.arms[0], name="[red]gla")
    renamed = dataclasses.replace(study, arms=(named, *study.arms[1:]))
    output = io.StringIO()
    Console(file=output, width=140).print(*report.tables(renamed))
    for part in (
        "[red]gla",
        "≈ no difference shown",
        "2.1517 ± 0.0150",
        "+0.0857 ± 0.0160",
        "byte 5-gram",
        "95 %",
    ):
        assert part in output.getvalue()


def test_the_report_is_whole_or_absent(study: StudyResult, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "new" / "report.html"
    report.write_report(study, path)
    before = path.read_text(encoding="utf-8")
    assert before.endswith("</html>")

    def full_disk(path: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("paribus.training.files.sync_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        report.write_report(dataclasses.replace(study, name="other"), path)
    assert path.read_text(encoding="utf-8") == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_bands_span_the_seeds_at_common_steps(study: StudyResult) -> None:
    gla = study.arms[0]
    shorter = dataclasses.replace(gla.seeds[1], curve=gla.seeds[1].curve[:7])
    study = dataclasses.replace(study, arms=(dataclasses.replace(gla, seeds=(gla.seeds[0], shorter)), *study.arms[1:]))
    data = charts.chart_data(study)
    (panel,) = data["panels"]
    band = next(band for band in panel["bands"] if data["arms"][band["arm"]]["name"] == "gla")
    assert band["tokens"] == [point.tokens for point in shorter.curve]
    pair = [gla.seeds[0].curve[3].score, shorter.curve[3].score]
    assert (band["low"][3], band["high"][3]) == (min(pair), max(pair))
    assert band["mean"][3] == pytest.approx(sum(pair) / 2)
    assert [(line["seed"], len(line["mean"])) for line in panel["broken"]] == [(1, 13)]


def tuned(*points: tuple[object, float | None]) -> tuple[TuningPoint, ...]:
    best = min(score for _, score in points if score is not None)
    return tuple(TuningPoint({"x": value}, score, 9, score == best, score is None) for value, score in points)


def test_stability_is_drawn(study: StudyResult) -> None:
    data = charts.chart_data(study)
    names = [arm["name"] for arm in data["arms"]]
    (panel,) = data["panels"]
    gradients, rms, largest = panel["stability"]
    assert [chart["axis"] for chart in panel["stability"]] == ["tokens", "layer", "layer"]
    assert gradients["log"]
    assert not rms["log"]
    gla, hgrn1 = study.arms[0], study.arms[3]
    line = next(line for line in gradients["lines"] if names[line["arm"]] == "gla")
    first = [run.stability.gradient_norms[0].norm for run in gla.seeds]
    assert (line["low"][0], line["high"][0], line["broken"]) == (min(first), max(first), False)
    assert line["mean"][0] == pytest.approx(sum(first) / 3)
    whole, broken = [line for line in gradients["lines"] if names[line["arm"]] == "hgrn1"]
    assert (whole["broken"], broken["broken"]) == (False, True)
    assert broken["x"][-1] < whole["x"][-1]
    line = next(line for line in largest["lines"] if names[line["arm"]] == "hgrn1")
    assert line["mean"] == list(hgrn1.seeds[0].stability.activation_max), "of the run that finished"
    assert not any(names[line["arm"]] == "mlp_mixer" for chart in panel["stability"] for line in chart["lines"])


def test_layers_without_a_finite_number_are_left_out(study: StudyResult) -> None:
    gla = study.arms[0]
    first = gla.seeds[0]
    hole = dataclasses.replace(first.stability, activation_rms=(1.0, None, 3.0, 4.0))
    broken = dataclasses.replace(gla, seeds=(dataclasses.replace(first, stability=hole), *gla.seeds[1:]))
    rms = charts.stability_charts([broken], {"gla": 0})[1]
    assert rms["lines"][0]["x"] == [1, 3, 4]


def test_tuning_edges_and_axes(study: StudyResult) -> None:
    def arm(*points: tuple[object, float | None]):
        return dataclasses.replace(study.arms[0], tuning=tuned(*points))

    assert charts.at_edge(arm((1, 2.0), (2, 1.0))) == {"x": 2}
    assert charts.at_edge(arm((1, 2.0), (2, 1.0), (3, None))) == {}, "beyond the best, runs diverge"
    assert charts.at_edge(arm((1, 2.0))) == {}
    assert charts.at_edge(arm(("a", 2.0), ("b", 1.0))) == {}

    def chart(*arms, ceiling: float | None = 8.0):
        return charts.tuning_chart(arms, "x", ceiling, {"gla": 0})

    numbers = chart(arm((0.1, 2.0), (0.01, 1.0), (1.0, None)))
    assert (numbers["values"], numbers["log"]) == ([0.01, 0.1, 1.0], True)
    assert numbers["lines"] == [{"arm": 0, "scores": [1.0, 2.0, None], "diverged": [2], "beyond": [], "chosen": 0}]
    beyond = chart(arm((0.1, 9.5), (0.01, 1.0), (1.0, 8.0)))
    assert beyond["lines"][0] == {"arm": 0, "scores": [1.0, 9.5, 8.0], "diverged": [], "beyond": [1], "chosen": 0}
    assert chart(arm((0.1, 9.5), (0.01, 1.0)), ceiling=None)["lines"][0]["beyond"] == [], (
        "nothing is known to be nothing"
    )
    words = chart(arm(("wsd", 2.0), ("cosine", 1.0)), arm((True, 1.0)))
    assert (words["values"], words["numeric"]) == (["wsd", "cosine", "True"], False)
    assert words["lines"][0]["chosen"] == 1


def test_one_far_arm_does_not_squeeze_the_others(study: StudyResult) -> None:
    rows = charts.forest(study.verdicts)["rows"]
    assert rows["mlp_mixer"]["beyond"]
    assert not any(rows[name]["beyond"] for name in ("gla", "hgrn1", "tnn", HOSTILE))
    assert rows["gla"]["low"] < rows["gla"]["mark"] < rows["gla"]["high"] < 50 < rows["tnn"]["low"]
    assert len(rows["tnn"]["caps"]) == 2
    assert rows["hgrn1"]["caps"] == []


def test_each_arm_keeps_a_look_of_its_own(study: StudyResult) -> None:
    names = ["attention", *"abcdefghijk"]
    many = tuple(dataclasses.replace(study.arms[1], name=name) for name in names)
    verdicts = tuple(dataclasses.replace(study.verdicts[0], arm=name) for name in names[1:])
    styles = panels.arm_styles(dataclasses.replace(study, arms=many, verdicts=verdicts))
    assert styles["attention"] == {"hue": 0, "dash": 0}
    assert [styles[name]["hue"] for name in "abcdefghijk"] == [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4]
    assert len({tuple(style.values()) for style in styles.values()}) == 12


def leveled(study: StudyResult) -> StudyResult:
    """The study with two references: tnn is compared with mlp_mixer."""
    verdicts = tuple(
        dataclasses.replace(verdict, reference="mlp_mixer" if verdict.arm == "tnn" else "attention")
        for verdict in study.verdicts
        if verdict.arm != "mlp_mixer"
    )
    return dataclasses.replace(study, verdicts=verdicts, within=("model.blocks.main.mixer",))


def test_levels_stand_apart(study: StudyResult) -> None:
    levels = leveled(study)
    assert [list(panel.levels) for panel in panels.panels(levels)] == [["attention", "mlp_mixer"]], "one task"
    assert [arm.name for arm in panels.ordered_arms(levels)] == [
        "attention",
        "gla",
        HOSTILE,
        "hgrn1",
        "mlp_mixer",
        "tnn",
    ]
    styles = panels.arm_styles(levels)
    assert styles["mlp_mixer"] == {"hue": 0, "dash": 1}
    assert styles["tnn"] == {"hue": 1, "dash": 1}, "the first arm of each level has the same colour"
    assert styles["gla"] == {"hue": 1, "dash": 0}
    assert report.headline(levels) == (
        f"gla is better than attention; {HOSTILE} shows no difference from attention; hgrn1 diverged; "
        "tnn is worse than mlp_mixer."
    )
    html = report.render_report(levels)
    text = " ".join(Page(html).text.split())
    assert "only at the same level of model.blocks.main.mixer: each with the reference that stands above it" in text
    assert "Differences are arm minus its reference, paired over seeds" in text
    assert html.count(' level"') == 1
    assert "+0.7193" not in text, "a baseline has no single arm to be compared with"
    output = io.StringIO()
    Console(file=output, width=140).print(*report.tables(levels))
    rows = [line for line in output.getvalue().splitlines() if re.search(r"\w+ +│ reference", line)]
    assert [row.split()[1] for row in rows] == ["attention", "mlp_mixer"]


VISION = {
    "common": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}
"""Machado, Oliveira & Fernandes (2009): linear RGB as others see it."""


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.clip(to_xyz @ rgb, 0.009, 1.1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_hues_stay_apart_for_every_colour_vision(vision: str, scheme: int) -> None:
    style = report._asset("report.css")
    hues = re.findall(r"--hue-\d: #(\w{6})", style)[8 * scheme : 8 * scheme + 8]
    linear = [(np.array(list(bytes.fromhex(hue))) / 255) ** 2.2 for hue in hues]
    seen = [lab(np.array(VISION[vision]) @ rgb) for rgb in linear]
    assert len(seen) == 1 + panels.HUES
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 20


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.amount(0), "0"), (formats.amount(999.7), "1 k"), (formats.amount(312_345), "312 k"),
        (formats.amount(5.16e12), "5.16 T"), (formats.memory(65_536), "64 KiB"), (formats.memory(None), "–"),
        (formats.duration(8.123), "8.12 s"), (formats.duration(200), "3 min 20 s"),
        (formats.duration(7500), "2 h 05 min"), (formats.signed(-0.5), "−0.5000"),
        (formats.ratio(1.0034), "1.003×"), (formats.probability(0.00001), "< 0.0001"),
        (formats.percent(0.615), "61.5 %"), (formats.number(0.00123), "0.00123"), (formats.number(1e-9), "1e−9"),
        (formats.number(12_345.6), "12,300"), (formats.number(1e30), "1e30"), (formats.number(-2.0), "−2"),
        (formats.span([2.0, 1.0, 1.5]), "1 to 2"), (formats.span([1.0, 1.0]), "1"), (formats.span([1.0, None]), "–"),
        (formats.span([]), "–"), (formats.highest([1.0, 3.0]), "3"), (formats.highest([1.0, None]), "–"),
        (formats.setting("byte"), "byte"), (formats.setting([1, True]), "[1, true]"),
        (formats.flat({"a": {"b": 1}, "c": None}), {"a.b": "1", "c": "null"}),
    ],
)  # fmt: skip
def test_numbers_are_written_one_way(written: object, expected: object) -> None:
    assert written == expected
