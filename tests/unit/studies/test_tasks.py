"""Studies whose arms do several tasks: what may vary, what is compared with what, one result of all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paribus.studies.audit import audit
from paribus.studies.equalizers import TOLERANCE, count_parameters, equalize
from paribus.studies.result import StudyResult, from_json
from paribus.studies.study import Leaves, Study, seeded
from paribus.training.files import write_json
from paribus.training.run import with_values
from tests import small
from tests.unit.studies.test_conduct import conducted, edited

MIXERS = {name: {"name": name} for name in ("attention", "gla")}
CAUSAL = Leaves({"model.task": {"name": "causal_lm"}})
MASKED = Leaves({"model.task": {"name": "masked_lm"}, "model.causal": False, "objective": {"mask_rate": 0.3}})
DIGITS = Leaves(
    {
        "model.task": {"name": "image_classification", "num_classes": 10},
        "model.causal": False,
        "model.image": {"size": 8, "patch_size": 2},
        "data": {"images": "digits", "batch_size": 4},
        "evaluation.test_images": 50,
    }
)


def over_tasks(text: Path, **tasks: Leaves) -> Study:
    """Two mixers under each task."""
    base = with_values(small.run(text, steps=6), {"evaluation.validation_images": 20})
    vary: dict[str, dict[str, Any]] = {"model.blocks.main.mixer": MIXERS, "task": tasks}
    first = next(iter(tasks))
    return replace(small.study(text), base=base, vary=vary, reference=f"attention+{first}", within=("task",))


@pytest.fixture(scope="module")
def study(text: Path) -> Study:
    found = over_tasks(text, causal=CAUSAL, digits=DIGITS)
    return replace(found, tune={"optimizer.lr": [1e-3, 3e-3, 1e30]}, seeds=(1, 2))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def result(study: Study, root: Path, cache: Path) -> StudyResult:
    return conducted(study, root, cache)[0]


def test_each_task_is_judged_by_its_own_metric(result: StudyResult, root: Path) -> None:
    found = {arm.name: (arm.task, arm.metric, arm.curve_metric, arm.tuning_metric) for arm in result.arms}
    digits = ("image_classification", *["error_rate"] * 3)
    causal = ("causal_lm", *["bits_per_byte"] * 3)
    assert found == {
        "attention+causal": causal,
        "attention+digits": digits,
        "gla+causal": causal,
        "gla+digits": digits,
    }
    assert {verdict.arm: verdict.reference for verdict in result.verdicts} == {
        "gla+causal": "attention+causal",
        "gla+digits": "attention+digits",
    }
    interests = {verdict.arm: verdict.smallest_effect_of_interest for verdict in result.verdicts}
    assert interests == {"gla+causal": 0.01, "gla+digits": 0.005}
    assert all(verdict.bootstrap_interval is not None for verdict in result.verdicts)
    arm = result.arms[1]
    assert arm.labels == {"model.blocks.main.mixer": "attention", "task": "digits"}
    assert set(arm.seeds[0].scores) == {"error_rate", "cross_entropy"}
    assert arm.seeds[0].score == arm.seeds[0].scores["error_rate"]
    assert all(0 <= point.score <= 1 for point in arm.seeds[0].curve)
    assert result.arms[0].sample.startswith("The ") and arm.sample.startswith("data:image/png;base64,")
    assert from_json((root / "tiny" / "result.json").read_text()) == result


def test_baselines_stand_beside_their_own_level(result: StudyResult) -> None:
    found = {(line.metric, line.references) for line in result.baselines}
    assert found == {("bits_per_byte", ("attention+causal",)), ("error_rate", ("attention+digits",))}
    bounds = {arm.name: (arm.sensitivity.bound, arm.sensitivity.ceiling) for arm in result.arms if arm.sensitivity}
    for name in ("attention+digits", "gla+digits"):
        weakest = max(line.score for line in result.baselines if line.metric == "error_rate")
        assert bounds[name] == (weakest, 1.0)
    assert bounds["gla+causal"] == (result.baselines[0].score, 8.0)


def test_the_audit_is_of_each_level(result: StudyResult) -> None:
    found = result.audit
    assert found.confounds == ()
    equal = "\n".join(found.equal)
    for level in ("causal", "digits"):
        for statement in ("data: manifests", "batches of seed 2: SHA-256", "measure: the same held-out"):
            (line,) = [x for x in found.equal if x.startswith(statement) and f"attention+{level} and its arms" in x]
            assert line.count("SHA-256") + line.count("manifests") >= 1
        assert f"of attention+{level}'s" in equal
        assert found.shared_parameters[f"attention+{level}"] == 1.0
        assert found.ratios[f"gla+{level}"]["tokens"] == 1.0
    declared = {difference.path for difference in found.differences}
    assert {"model.task.name", "model.causal", "data.images", "data.corpora"} <= {
        path if not path.startswith("data.corpora") else "data.corpora" for path in declared
    }


def test_a_confound_in_one_level_is_named(study: Study, result: StudyResult, tmp_path: Path) -> None:
    equalized = equalize(study)
    chosen = {name: seeded(run, 1, "audit") for name, run in equalized.runs.items()}

    def confounds(arms: list) -> tuple[str, ...]:
        return audit(study, equalized, arms, chosen).confounds

    assert confounds(list(result.arms)) == ()
    other = edited(result.arms[3], tmp_path / "documents")
    path = tmp_path / "documents" / "result.json"
    write_json(path, {**json.loads(path.read_text()), "documents_sha256": {"test": "0"}})
    assert confounds([*result.arms[:3], other]) == (
        "held-out documents or images differ between runs (attention+digits and its arms)",
    )
    other = edited(result.arms[3], tmp_path / "images", manifests={"corpora": {"other": 1}})
    with pytest.raises(ValueError, match="trained on different data"):
        confounds([*result.arms[:3], other])


def test_a_study_over_tasks_goes_on_where_it_was(study: Study, root: Path, cache: Path, result: StudyResult) -> None:
    again, trained = conducted(study, root, cache)
    assert trained == 0
    assert (again.arms, again.verdicts, again.baselines) == (result.arms, result.verdicts, result.baselines)


def test_divergence_in_one_level_leaves_the_others_alone(text: Path, cache: Path, tmp_path: Path) -> None:
    study = over_tasks(text, causal=CAUSAL, masked=MASKED)
    arms = {"plain": Leaves({}), "clipped": Leaves({"optimizer.clip_norm": 0.5})}
    study = replace(
        study,
        base=with_values(study.base, {"budget.steps": 4, "optimizer.lr": 3e-3}),
        vary={"care": arms, "task": {"causal": CAUSAL, "masked": Leaves({**MASKED.values, "optimizer.lr": 1e30})}},
        reference="plain+causal",
        seeds=(1, 2),
    )
    result, _ = conducted(study, tmp_path, cache)
    outcomes = {verdict.arm: verdict.outcome for verdict in result.verdicts}
    assert outcomes["clipped+masked"] == "diverged"
    assert outcomes["clipped+causal"] in ("better", "worse", "no difference shown", "inconclusive")
    assert {arm.name: arm.mean is not None for arm in result.arms} == {
        "plain+causal": True,
        "plain+masked": False,
        "clipped+causal": True,
        "clipped+masked": False,
    }
    assert any("plain+masked has no finished run" in line for line in result.audit.confounds)
    assert not any("plain+causal" in line for line in result.audit.confounds)


def test_a_metric_that_the_verdict_alone_uses(text: Path, cache: Path, tmp_path: Path) -> None:
    study = over_tasks(text, masked=MASKED)
    study = replace(
        study,
        base=with_values(study.base, {"budget.steps": 4}),
        vary={**study.vary, "task": {"masked": MASKED}},
        within=(),
        seeds=(1, 2),
        tune={"optimizer.lr": [3e-3]},
        metric="pseudo_perplexity",
        smallest_effect_of_interest=0.5,
    )
    result, _ = conducted(study, tmp_path, cache)
    for arm in result.arms:
        assert (arm.metric, arm.tuning_metric) == ("pseudo_perplexity", "masked_bits_per_byte")
        assert arm.curve_metric == "masked_bits_per_byte"
        assert arm.mean == pytest.approx(sum(seed.scores["pseudo_perplexity"] for seed in arm.seeds) / 2)
    (verdict,) = result.verdicts
    assert verdict.bootstrap_interval is None, "a perplexity is no mean over documents"
    assert verdict.smallest_effect_of_interest == 0.5
    assert {line.metric for line in result.baselines} == {"masked_bits_per_byte"}
    other = replace(study, metric="frechet_distance")
    with pytest.raises(ValueError, match="'frechet_distance', which no run judged by masked_bits_per_byte") as caught:
        conducted(other, tmp_path, cache)
    assert str(caught.value).endswith("measured: masked_bits_per_byte, pseudo_perplexity")


def test_a_metric_that_tuning_may_use_too(text: Path, cache: Path, tmp_path: Path) -> None:
    study = over_tasks(text, digits=DIGITS)
    study = replace(
        study,
        base=with_values(study.base, {"budget.steps": 3}),
        within=(),
        seeds=(1,),
        tune={"optimizer.lr": [3e-3]},
        metric="cross_entropy",
    )
    result, _ = conducted(study, tmp_path, cache)
    for arm in result.arms:
        assert (arm.metric, arm.tuning_metric, arm.curve_metric) == ("cross_entropy", "cross_entropy", "error_rate")
        assert arm.tuning[0].score is not None and arm.tuning[0].score > 1, "nats, and no share of errors"
        assert arm.sensitivity is not None
        assert (arm.sensitivity.bound, arm.sensitivity.ceiling) == (None, None)


def test_sizes_are_matched_under_every_task(text: Path) -> None:
    study = over_tasks(text, causal=CAUSAL, masked=MASKED, digits=DIGITS)
    runs = equalize(study).runs
    sizes = {name: count_parameters(run) for name, run in runs.items()}
    for task in ("causal", "masked", "digits"):
        assert sizes[f"gla+{task}"] == pytest.approx(sizes[f"attention+{task}"], rel=TOLERANCE)
    assert sizes["gla+digits"] != sizes["gla+causal"]
    study = replace(study, base=with_values(study.base, {"budget.steps": 400}), equal="flops")
    budgets = equalize(study).runs
    steps = {name: run.budget.steps for name, run in budgets.items()}
    assert steps["attention+digits"] == steps["attention+causal"] == 400
    assert steps["gla+digits"] != steps["gla+causal"] != 400


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"within": ()}, "arm 'attention\\+masked': its task is masked_lm, and that of its reference "
         "'attention\\+causal' is causal_lm; name the factor that sets the task \\(task\\) in within"),
        ({"within": ("model.blocks.main.mixer",)}, "name the factor that sets the task \\(task\\) in within"),
    ],
)  # fmt: skip
def test_tasks_are_not_compared_with_each_other(text: Path, values: dict[str, Any], message: str) -> None:
    study = over_tasks(text, causal=CAUSAL, masked=MASKED)
    with pytest.raises(ValueError, match=message) as caught:
        equalize(replace(study, **values))
    assert "\n" not in str(caught.value)


def test_data_vary_only_between_levels(text: Path) -> None:
    study = over_tasks(text, causal=CAUSAL, digits=DIGITS)
    with pytest.raises(ValueError, match="'data' varies, so that arms would be measured on different documents; name"):
        replace(study, within=())
    for path, value in (("data.corpora", {str(text): 2.0}), ("evaluation.points", 3)):
        level = {"task": {"causal": CAUSAL, "other": Leaves({path: value})}}
        with pytest.raises(ValueError, match=f"'{path}' varies, so that arms would be measured on different documents"):
            replace(study, vary={**study.vary, **level}, within=())
        assert replace(study, vary={**study.vary, **level}).within == ("task",)
    for path in ("data.seed", "seed", "name"):
        level = {"task": {"causal": CAUSAL, "other": Leaves({path: 3})}}
        with pytest.raises(ValueError, match=f"'{path}' cannot vary between arms"):
            replace(study, vary={**study.vary, **level})


def test_a_metric_that_is_unknown(text: Path) -> None:
    with pytest.raises(ValueError, match="unknown metric 'error_rat'; did you mean 'error_rate'"):
        replace(small.study(text), metric="error_rat")
