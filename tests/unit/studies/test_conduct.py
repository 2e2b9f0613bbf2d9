"""Conducting and auditing a study, in one process."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from paribus.data.batches import TextBatches, held_out
from paribus.evaluation.ngram import ByteNGram
from paribus.studies.audit import audit
from paribus.studies.conduct import Workbench, conduct
from paribus.studies.equalizers import Equalized, equalize
from paribus.studies.executor import LocalExecutor, Task
from paribus.studies.progress import StudyProgress
from paribus.studies.result import ArmResult, Audit, StudyResult, from_json
from paribus.studies.study import Study, seeded
from paribus.training.files import write_json
from paribus.training.loop import train
from paribus.training.run import Run, with_values
from tests import small


class Serial:
    """Trains here, one run after the other, and counts."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.trained = cache, 0

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, Any]]]:
        for task in tasks:
            self.trained += not (task.folder / "result.json").exists()
            yield task, train(task.run, task.folder, self.cache)


def conducted(study: Study, root: Path, cache: Path) -> tuple[StudyResult, int]:
    """The result, and how many runs were trained for it."""
    executor = Serial(cache)
    console = Console(quiet=True)
    result = conduct(Workbench("tiny", study, root, cache, executor, StudyProgress(console)))  # type: ignore[arg-type]
    return result, executor.trained


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def result(text: Path, cache: Path, root: Path) -> StudyResult:
    return conducted(small.study(text), root, cache)[0]


def audited(
    study: Study, arms: Sequence[ArmResult], chosen: dict[str, Run] | None = None, equalized: Equalized | None = None
) -> Audit:
    equalized = equalized or equalize(study)
    chosen = chosen or {name: seeded(run, study.seeds[0], "audit") for name, run in equalized.runs.items()}
    return audit(study, equalized, list(arms), chosen)


def edited(arm: ArmResult, folder: Path, **record: Any) -> ArmResult:
    """The arm with its first run in a copy of its folder, where run.json says something else."""
    source = Path(arm.seeds[0].run_folder)
    folder.mkdir()
    for name in ("run.json", "result.json", "journal.jsonl"):
        (folder / name).write_bytes((source / name).read_bytes())
    known = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", {**known, **record})
    return replace(arm, seeds=(replace(arm.seeds[0], run_folder=str(folder)), *arm.seeds[1:]))


def test_the_audit_of_an_equal_study(result: StudyResult) -> None:
    found = result.audit
    assert found.confounds == ()
    assert all(difference.declared for difference in found.differences)
    paths = {difference.path for difference in found.differences}
    assert paths == {"model.blocks.main.mixer.name", "model.blocks.main.channel.expansion"}
    text = "\n".join(found.equal)
    for statement in (
        "batches of seed 1: SHA-256",
        "batches of seed 2: SHA-256",
        "held-out documents",
        "tokens: within 0.00%",
    ):
        assert statement in text
    assert 0.995 <= found.ratios["gla"]["parameters"] <= 1.005
    assert found.ratios["gla"]["tokens"] == 1.0
    assert found.shared_parameters["attention"] == 1.0
    assert 0.3 < found.shared_parameters["gla"] < 1.0, "embedding, head and norms are shared"


def test_an_undeclared_difference_is_found(result: StudyResult, text: Path) -> None:
    study = small.study(text)
    equalized = equalize(study)
    chosen = {name: seeded(run, 1, "audit") for name, run in equalized.runs.items()}
    chosen["gla"] = with_values(chosen["gla"], {"optimizer.lr": 0.5})
    found = audited(study, result.arms, chosen)
    assert "optimizer.lr differs and was not declared" in found.confounds
    difference = next(d for d in found.differences if d.path == "optimizer.lr")
    assert (difference.values, difference.declared) == ({"attention": 0.003, "gla": 0.5}, False)
    tuned = replace(study, tune={"optimizer.lr": [0.003, 0.5]})
    assert audited(tuned, result.arms, chosen).confounds == ()


def test_differing_batches_are_found(result: StudyResult, text: Path, tmp_path: Path) -> None:
    arm = edited(result.arms[1], tmp_path / "copy")
    path = tmp_path / "copy" / "journal.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events[5:]:
        event["batches_sha256"] = "0" * 64
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    confounds = audited(small.study(text), [result.arms[0], arm]).confounds
    assert confounds == ("batches of seed 1 differ between arms",)
    path.write_text("")
    confounds = audited(small.study(text), [result.arms[0], arm]).confounds
    assert confounds == ("batches of seed 1: no common step to compare",)


def test_differing_surroundings_are_found(result: StudyResult, text: Path, tmp_path: Path) -> None:
    record = json.loads((Path(result.arms[1].seeds[0].run_folder) / "run.json").read_text())
    changes: dict[str, dict[str, Any]] = {
        "versions and machine differ": {"environment": {**record["environment"], "torch": "1.0"}},
        "code outside the varied components differ": {"sources": {**record["sources"], "nn/block.py": "0"}},
    }
    for index, (message, change) in enumerate(changes.items()):
        arm = edited(result.arms[1], tmp_path / str(index), **change)
        (confound,) = audited(small.study(text), [result.arms[0], arm]).confounds
        assert message in confound
    arm = edited(result.arms[1], tmp_path / "corpora", manifests={"corpora": {"other": 1}})
    with pytest.raises(ValueError, match="trained on different data"):
        audited(small.study(text), [result.arms[0], arm])
    arm = edited(result.arms[1], tmp_path / "documents")
    path = tmp_path / "documents" / "result.json"
    write_json(path, {**json.loads(path.read_text()), "documents_sha256": {"test": "0"}})
    assert audited(small.study(text), [result.arms[0], arm]).confounds == (
        "held-out documents or images differ between runs",
    )


def test_sizes_are_checked_as_measured(result: StudyResult, text: Path) -> None:
    arm = result.arms[1]
    large = replace(arm, seeds=tuple(replace(seed, parameters=2 * seed.parameters) for seed in arm.seeds))
    (confound,) = audited(small.study(text), [result.arms[0], large]).confounds
    assert confound.startswith(("parameters: within 9", "parameters: within 10"))
    diverged = replace(arm, seeds=(replace(arm.seeds[0], status="diverged", tokens=64), *arm.seeds[1:]))
    assert audited(small.study(text), [result.arms[0], diverged]).confounds == ()


def test_the_result(result: StudyResult, root: Path, text: Path, cache: Path) -> None:
    assert from_json((root / "tiny" / "result.json").read_text()) == result
    assert "<html" in (root / "tiny" / "report.html").read_text()
    assert {verdict.arm for verdict in result.verdicts} == {"gla"}
    assert [seed.seed for seed in result.arms[0].seeds] == [1, 2]
    assert [point.step for point in result.arms[0].seeds[0].curve] == [10, 20]
    assert result.arms[0].sample.startswith("The ")
    assert conducted(small.study(text), root, cache)[1] == 0, "finished runs are not repeated"


def test_stability_is_what_the_run_measured(result: StudyResult) -> None:
    for seed in (seed for arm in result.arms for seed in arm.seeds):
        measured = json.loads((Path(seed.run_folder) / "result.json").read_text())
        stability = seed.stability
        assert stability is not None
        assert seed.optimizer_state_bytes == measured["optimizer_state_bytes"] > 8 * seed.parameters
        assert stability.max_gradient_norm == measured["stability"]["max_gradient_norm"]
        assert list(stability.activation_rms) == measured["stability"]["activation_rms"]["last"]
        assert list(stability.activation_max) == measured["stability"]["activation_max"]["max"]
        assert len(stability.activation_rms) == 1, "layers"
        assert {"embedding", "matrix"} <= set(stability.update_ratios)
        points = stability.gradient_norms
        assert [point.step for point in points] == list(range(1, 21)), "a short run keeps every step"
        assert max(point.norm for point in points) == stability.max_gradient_norm


def test_gradient_norms_are_thinned_to_the_largest(text: Path, cache: Path, tmp_path: Path) -> None:
    study = replace(small.study(text), base=small.run(text, steps=100), seeds=(1,))
    result, _ = conducted(study, tmp_path, cache)
    seed = result.arms[0].seeds[0]
    norms = [event["gradient_norm"] for event in small.journal(Path(seed.run_folder)) if event["event"] == "train"]
    assert len(norms) == 100
    assert seed.stability is not None
    points = seed.stability.gradient_norms
    assert [point.step for point in points] == [math.floor(100 * i / 40) for i in range(1, 41)]
    ends = [0, *(point.step for point in points)]
    assert [p.norm for p in points] == [max(norms[a:b]) for a, b in itertools.pairwise(ends)]
    assert [point.tokens for point in points] == [64 * point.step for point in points]


def test_baselines_count_what_the_reference_read(result: StudyResult, text: Path, cache: Path) -> None:
    run = seeded(small.study(text).arm_run("attention"), 1, "any")
    batches = TextBatches(run.data, cache)
    rows = [batches.batch(step).tokens[:, :-1].numpy().reshape(-1) for step in range(20)]
    model = ByteNGram(2, np.concatenate(rows).astype(np.uint8))
    documents = held_out(run.data, "test", cache, 6, 200)
    bits = sum(model.bits(np.frombuffer(document.content, dtype=np.uint8)) for document in documents)
    expected = bits / sum(document.num_bytes for document in documents)
    assert result.baselines[1].name == "byte 2-gram"
    assert result.baselines[1].score == pytest.approx(expected)


def test_tuning_extends_and_uses_a_seed_of_its_own(text: Path, cache: Path, tmp_path: Path) -> None:
    study = replace(small.study(text), base=small.run(text, steps=5), seeds=(1,), tune={"optimizer.lr": [1e-4, 2e-4]})
    result, trained = conducted(study, tmp_path, cache)
    assert trained == 2 * (2 + 3) + 2
    for arm in result.arms:
        assert [point.values["optimizer.lr"] for point in arm.tuning] == [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3]
        assert [point.chosen for point in arm.tuning] == [False, False, False, False, True]
        assert {point.seed for point in arm.tuning} == {1000}
    assert result.audit.confounds == ()


def test_divergence_is_in_the_verdict(text: Path, cache: Path, tmp_path: Path) -> None:
    vary = {"optimizer": {name: {"lr": lr} for name, lr in (("sane", 3e-3), ("absurd", 1e30))}}
    study = replace(small.study(text), base=small.run(text, steps=5), vary=vary, reference="sane")
    result, _ = conducted(study, tmp_path, cache)
    (verdict,) = result.verdicts
    assert verdict.outcome == "diverged"
    assert "seed 1" in verdict.reason or "2 of 2" in verdict.reason or "nan" in verdict.reason
    absurd = next(arm for arm in result.arms if arm.name == "absurd")
    assert absurd.mean is None and absurd.sample == ""
    assert all("is nan at step" in (seed.divergence or "") for seed in absurd.seeds)
    every, _ = conducted(replace(study, tune={"schedule.warmup": [0.02, 0.04]}), tmp_path, cache)
    assert [verdict.outcome for verdict in every.verdicts] == ["diverged"], "it is a result that nothing tames an arm"
    absurd = next(arm for arm in every.arms if arm.name == "absurd")
    tried = [(point.values["schedule.warmup"], point.diverged, point.chosen) for point in absurd.tuning]
    assert tried[:2] == [(0.02, True, False), (0.04, True, False)]
    assert tried[-1][1:] == (True, True)


def test_a_grid_may_reach_into_divergence(text: Path, cache: Path, tmp_path: Path) -> None:
    """A learning rate that is absurd on purpose costs its own run and nothing else."""
    grid = {"optimizer.lr": [1e-4, 3e-3, 1e30]}
    study = replace(small.study(text), base=small.run(text, steps=20), seeds=(1,), tune=grid)
    result, _ = conducted(study, tmp_path, cache)
    for arm in result.arms:
        points = {point.values["optimizer.lr"]: point for point in arm.tuning}
        assert points[1e30].diverged and points[1e30].score is None
        assert points[3e-3].chosen
        assert arm.mean is not None
        assert arm.sensitivity is not None
        assert (arm.sensitivity.best, arm.sensitivity.threshold) == (3e-3, 1e30)
        assert arm.sensitivity.bound == result.baselines[0].score, "of byte frequencies"
        low, best = (min(points[lr].score or 0, 8) for lr in (1e-4, 3e-3))
        assert arm.sensitivity.excess == pytest.approx((low + best + 8) / 3 - best)
    assert from_json((tmp_path / "tiny" / "result.json").read_text()) == result


def test_arms_are_compared_within_a_level(text: Path, cache: Path, tmp_path: Path) -> None:
    vary = {
        "model.blocks.main.mixer": {name: {"name": name} for name in ("attention", "gla")},
        "model.num_hidden_layers": {"flat": 1, "deep": 2},
    }
    study = replace(
        small.study(text),
        base=small.run(text, steps=5),
        vary=vary,
        reference="attention+flat",
        within=("model.num_hidden_layers",),
    )
    result, _ = conducted(study, tmp_path, cache)
    assert {verdict.arm: verdict.reference for verdict in result.verdicts} == {
        "gla+flat": "attention+flat",
        "gla+deep": "attention+deep",
    }
    assert result.audit.confounds == ()
    statements = "\n".join(result.audit.equal)
    for level in ("flat", "deep"):
        assert f"of attention+{level}'s" in statements
        assert result.audit.ratios[f"gla+{level}"]["parameters"] == pytest.approx(1, abs=0.005)
        assert result.audit.shared_parameters[f"attention+{level}"] == 1.0
    assert result.audit.shared_parameters["gla+deep"] < 1.0
    assert result.within == ("model.num_hidden_layers",)
    sizes = {arm.name: arm.seeds[0].parameters for arm in result.arms}
    assert sizes["attention+deep"] > 1.2 * sizes["attention+flat"]


def test_a_confound_of_one_level_is_found(text: Path, result: StudyResult) -> None:
    vary = {**small.study(text).vary, "schedule.name": {"wsd": "wsd", "cosine": "cosine"}}
    study = replace(small.study(text), vary=vary, reference="attention+wsd", within=("schedule.name",))
    twins = [(f"{arm.name}+{label}", arm) for label in ("wsd", "cosine") for arm in result.arms]
    arms = [replace(arm, name=name) for name, arm in twins]
    assert audited(study, arms).confounds == ()
    last = arms[3]
    arms[3] = replace(last, seeds=tuple(replace(seed, parameters=2 * seed.parameters) for seed in last.seeds))
    (confound,) = audited(study, arms).confounds
    assert confound.startswith("parameters: within ") and "of attention+cosine's" in confound


def test_studies_share_what_is_the_same(text: Path, cache: Path, root: Path, result: StudyResult) -> None:
    other = replace(small.study(text), seeds=(2, 3))
    assert conducted(other, root, cache)[1] == 2, "seed 2 of both arms was there"
    assert result.arms[0].seeds[1].run_folder == conducted(other, root, cache)[0].arms[0].seeds[0].run_folder


def test_a_killed_worker_gives_one_line(text: Path, cache: Path, tmp_path: Path) -> None:
    victims: list[int] = []

    def kill(task: Task | None, tick: object) -> None:
        if task is not None and not victims:
            victims.append(executor._pool[0].process.pid)
            os.kill(victims[0], signal.SIGKILL)

    run = small.run(text, steps=3000)
    with LocalExecutor(1, cache, kill) as executor, pytest.raises(OSError, match="was killed by SIGKILL") as caught:
        list(executor.results([Task(run, tmp_path / "run")]))
    assert str(caught.value).startswith(f"the process training '{tmp_path / 'run'}' was killed")
    assert "\n" not in str(caught.value)
    assert executor._pool == []
    assert not Path(f"/proc/{victims[0]}").exists()
