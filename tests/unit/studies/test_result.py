"""A study's result as JSON, and how runs become verdicts."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from paribus.studies.report import render_report
from paribus.studies.result import StudyResult, from_json, to_json
from paribus.studies.verdicts import DocumentCosts, judge
from tests.unit.studies.example_study import HOSTILE, arm, example_study, run

GALLERY = Path(__file__).parents[3] / "studies"


@pytest.fixture(scope="module")
def study() -> StudyResult:
    return example_study()


def test_json_there_and_back(study: StudyResult) -> None:
    text = to_json(study)
    assert from_json(text) == study
    assert to_json(from_json(text)) == text
    assert json.loads(text)["schema_version"] == 2


@pytest.mark.parametrize("path", sorted(GALLERY.glob("*/results.json")), ids=lambda path: path.parent.name)
def test_results_of_the_gallery_have_a_report(path: Path) -> None:
    """Older ones know nothing of stability and sensitivity."""
    result = from_json(path.read_text(encoding="utf-8"))
    assert from_json(to_json(result)) == result
    assert result.question in render_report(result).replace("&#39;", "'")


def test_results_older_than_the_measurement_of_stability(study: StudyResult) -> None:
    old = json.loads(to_json(study))
    del old["within"]
    for made in old["arms"]:
        del made["sensitivity"]
        for seed in made["seeds"]:
            del seed["stability"], seed["optimizer_state_bytes"]
    result = from_json(json.dumps(old))
    assert all(seed.stability is None for made in result.arms for seed in made.seeds)
    page = render_report(result)
    assert "not measured" in page
    assert "stability-chart-0" not in page
    assert "Sensitivity" not in page


def test_nothing_that_is_no_number_gets_in_or_out(study: StudyResult) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(dataclasses.replace(study, confidence=math.nan))
    text = to_json(study).replace('"confidence": 0.95', '"confidence": NaN')
    with pytest.raises(ValueError, match="NaN is no JSON number"):
        from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda study: study | {"questoin": ""}, "unknown key 'questoin'; did you mean 'question'"),
        (lambda study: {key: study[key] for key in study if key != "audit"}, "missing key 'audit'"),
        (lambda study: study | {"schema_version": 9}, "schema version is 9; 2 is needed, which a new study writes"),
        (lambda study: study | {"reference_arm": "gpt"}, "reference arm 'gpt' is none of"),
        (lambda study: study | {"arms": 3}, "arms is 3; a list is needed"),
        (
            lambda study: study | {"audit": study["audit"] | {"ratios": {"gla": 2}}},
            "ratios: gla is 2; an object",
        ),
        (
            lambda study: study | {"verdicts": [study["verdicts"][0] | {"outcome": "best"}]},
            "allowed: 'better'",
        ),
    ],
)
def test_bad_json_is_one_clear_line(study: StudyResult, change, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_json(json.dumps(change(json.loads(to_json(study)))))
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_is_refused(study: StudyResult) -> None:
    with pytest.raises(ValueError, match="study result: not JSON"):
        from_json(to_json(study)[:5000])


def test_every_outcome_of_the_example(study: StudyResult) -> None:
    found = {verdict.arm: verdict for verdict in study.verdicts}
    assert {name: verdict.outcome for name, verdict in found.items()} == {
        "gla": "better",
        HOSTILE: "no difference shown",
        "hgrn1": "diverged",
        "mlp_mixer": "inconclusive",
        "tnn": "worse",
    }
    assert found["hgrn1"].reason == "1 of 2 runs diverged (seed 1: loss was NaN at step 260)."
    assert found["hgrn1"].seeds == 1
    assert "One seed" in found["mlp_mixer"].reason
    assert found["gla"].adjusted_p_value == pytest.approx(3 * found["gla"].p_value), "three arms have a p value"
    low, high = found["tnn"].bootstrap_interval
    assert low < 0.0857 < high or low == pytest.approx(0.0857, abs=0.03)


def judged(reference_ends: list[float | None], other_ends: list[float | None]) -> tuple:
    """Verdict on two arms whose seeds end at these values; None is a run that diverged."""
    made = [
        arm(
            name,
            tuple(run(name, i, end or 3.0, 1000.0, None if end else 100) for i, end in enumerate(ends)),
            1e-3,
        )
        for name, ends in (("attention", reference_ends), ("other", other_ends))
    ]
    costs = DocumentCosts(np.full(5, 8.0), np.full(5, 4))
    documents = {a.name: {r.seed: costs for r in a.seeds if r.status == "finished"} for a in made}
    return judge(made, dict.fromkeys(documents, "attention"), documents)


def test_a_diverged_reference_leaves_nothing_conclusive() -> None:
    (verdict,) = judged([2.0, 2.01, None], [1.0, 1.01, 1.02])
    assert verdict.outcome == "inconclusive"
    assert "1 of 3 runs of the reference diverged" in verdict.reason
    assert verdict.seeds == 2


def test_an_arm_without_a_finished_run() -> None:
    (verdict,) = judged([2.0, 2.01], [None, None])
    assert (verdict.outcome, verdict.difference, verdict.bootstrap_interval) == ("diverged", None, None)


def test_a_study_of_one_arm_has_no_verdict() -> None:
    one = arm("attention", (run("attention", 0, 2.0, 1000.0),), 1e-3)
    assert judge([one], {"attention": "attention"}, {}) == ()


def test_each_arm_is_judged_beside_its_own_reference() -> None:
    ends = {"pre+2": 2.0, "post+2": 2.1, "pre+6": 1.0, "post+6": 0.9, "sandwich+6": 1.3}
    made = [
        arm(name, tuple(run(name, i, end + 0.001 * i * len(name), 1000.0) for i in range(3)), 1e-3)
        for name, end in ends.items()
    ]
    documents = {
        a.name: {r.seed: DocumentCosts(np.full(5, 4 * (r.score or 0)), np.full(5, 4)) for r in a.seeds} for a in made
    }
    references = {name: f"pre+{name[-1]}" for name in ends}
    verdicts = {verdict.arm: verdict for verdict in judge(made, references, documents)}
    assert {name: verdict.reference for name, verdict in verdicts.items()} == {
        "post+2": "pre+2",
        "post+6": "pre+6",
        "sandwich+6": "pre+6",
    }
    differences = {name: verdict.difference for name, verdict in verdicts.items()}
    assert differences == pytest.approx({"post+2": 0.101, "post+6": -0.099, "sandwich+6": 0.305})
    assert {verdict.outcome for verdict in verdicts.values()} == {"better", "worse"}
    low, high = verdicts["post+6"].bootstrap_interval
    assert low == pytest.approx(-0.099) == high
    p_values = sorted(verdict.p_value for verdict in verdicts.values())
    assert max(verdict.adjusted_p_value for verdict in verdicts.values()) >= 3 * p_values[0], "Holm over all three"
