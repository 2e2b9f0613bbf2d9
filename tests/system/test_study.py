"""A study from its file to the verdict, the report and a published model that writes text."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from paribus.cli import main
from paribus.studies import command
from paribus.studies.result import from_json
from paribus.training.files import read_json, write_json
from tests.system.test_report_in_browser import chromium, opened
from tests.unit.studies.example_study import example_tasks

pytestmark = pytest.mark.slow

STUDY = """
from dataclasses import replace
from pathlib import Path
from tests import small
text = Path({text!r})
study = small.study(text, base=small.run(text, steps=30), tune={{"optimizer.lr": [3e-3, 1e-2]}})
smoke = replace(study, tune={{}}, seeds=(1, 2))
"""


def test_a_study_end_to_end(
    text: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARIBUS_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "0001_tiny" / "study.py"
    path.parent.mkdir()
    path.write_text(STUDY.format(text=str(text)))
    words = ["study", str(path), "--workers", "1"]
    assert main(words) == 0
    printed = capsys.readouterr()
    folder = tmp_path / "runs" / "0001_tiny"
    assert printed.err == ""

    result = from_json((folder / "result.json").read_text())
    assert [arm.name for arm in result.arms] == ["attention", "gla"]
    assert all(len(arm.seeds) == 2 and arm.mean is not None for arm in result.arms)
    for arm in result.arms:
        tried = {point.values["optimizer.lr"] for point in arm.tuning}
        assert {3e-3, 1e-2} <= tried
        assert len(tried) > 2, "one of two values is at an edge"
        assert sum(point.chosen for point in arm.tuning) == 1
    assert result.audit.confounds == ()
    equal = "\n".join(result.audit.equal)
    hashes = re.findall(r"batches of seed (\d): SHA-256 \w{16} after 30 steps in all arms", equal)
    assert hashes == ["1", "2"]
    shares = re.search(r"parameters: within (\d\.\d\d)% of", equal)
    assert shares is not None and float(shares[1]) <= 0.5
    assert [baseline.name for baseline in result.baselines] == ["byte 1-gram", "byte 2-gram"]

    assert "Which of two small models is better?" in (folder / "report.html").read_text()
    for line in ("report    runs/0001_tiny/report.html", "a sample of its text", "gla: "):
        assert line in printed.out
    best = min(result.arms, key=lambda arm: arm.mean or 9).name
    assert best in printed.out.partition("published ")[2]
    published = folder / f"0001_tiny-{best}"
    assert (published / "README.md").is_file()
    assert main(["generate", str(published), "the cat", "--tokens", "10"]) == 0
    assert capsys.readouterr().out.startswith("the cat")
    assert main(["evaluate", str(published), "--corpus", str(text), "--documents", "6"]) == 0
    assert "bits per byte" in capsys.readouterr().out

    check_again(words, folder, capsys)


def check_again(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calling again trains nothing; changed code is refused unless it is accepted."""
    runs = [path for path in folder.parent.glob("*/result.json") if path.parent != folder]
    before = {path: path.stat().st_mtime_ns for path in runs}
    first = from_json((folder / "result.json").read_text())
    assert main([*words, "--no-publish"]) == 0
    again = from_json((folder / "result.json").read_text())
    assert (again.verdicts, again.audit, again.arms) == (first.verdicts, first.audit, first.arms)
    assert {path: path.stat().st_mtime_ns for path in before} == before

    record_path = Path(again.arms[1].seeds[0].run_folder) / "run.json"
    record = read_json(record_path)
    write_json(record_path, {**record, "sources": {**record["sources"], "nn/block.py": "0"}})
    capsys.readouterr()
    assert main([*words, "--no-publish"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "is stale: nn/block.py changed since" in line
    assert main([*words, "--no-publish", "--accept-stale"]) == 0
    stale = from_json((folder / "result.json").read_text())
    assert stale.audit.confounds == ("code outside the varied components differ between runs",)
    assert stale.verdicts == first.verdicts

    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").is_file()


def test_the_smoke_variant(
    text: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARIBUS_CACHE", str(cache))
    path = tmp_path / "mine.py"
    path.write_text(STUDY.format(text=str(text)).replace("smoke = ", "unnamed = "))
    assert main(["study", str(path), "--smoke"]) == 2
    assert "defines no Study called 'smoke'" in capsys.readouterr().err


TASKS = """
from pathlib import Path
from tests.unit.studies.test_tasks import CAUSAL, DIGITS, over_tasks
study = over_tasks(Path({text!r}), causal=CAUSAL, digits=DIGITS)
"""


def test_what_cannot_be_published_costs_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The other levels' best arms are published all the same."""
    published = []

    def refuse_images(run: Path, out: Path) -> None:
        if "digits" in out.name:
            raise ValueError("a classifier needs colours")
        published.append(out.name)

    monkeypatch.setattr(command, "publish_run", refuse_images)
    output = io.StringIO()
    for arm in example_tasks().arms:
        command._publish(Console(file=output, width=120), arm, tmp_path)
    assert published == [f"{tmp_path.name}-attention-text", f"{tmp_path.name}-gla-text"]
    assert "attention+digits is not published: a classifier needs colours" in output.getvalue()
    assert output.getvalue().count("a sample of its text") == 2


def test_two_mixers_under_two_tasks(
    text: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One matrix of both; both tasks' best models are published; nothing is trained twice."""
    monkeypatch.setenv("PARIBUS_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tasks.py"
    path.write_text(TASKS.format(text=str(text)))
    assert main(["study", str(path), "--workers", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    folder = tmp_path / "runs" / "tasks"
    result = from_json((folder / "result.json").read_text())
    assert result.audit.confounds == ()
    assert {verdict.arm: verdict.reference for verdict in result.verdicts} == {
        "gla+causal": "attention+causal",
        "gla+digits": "attention+digits",
    }
    for task, metric in (("causal", "bits per byte"), ("digits", "share of images misclassified")):
        assert metric in printed.out
        arms = [arm for arm in result.arms if arm.labels["task"] == task]
        best = min(arms, key=lambda arm: arm.mean or 0.0)
        name = f"tasks-{best.name.replace('+', '-')}"
        assert f"published {Path('runs') / 'tasks' / name}" in printed.out
        assert (folder / name / "README.md").is_file()
    assert printed.out.count("a sample of its text") == 1
    assert "base64" not in printed.out
    runs = [path for path in folder.parent.glob("*/result.json") if path.parent != folder]
    before = {path: path.stat().st_mtime_ns for path in runs}
    assert len(runs) == 2 * 2 * 2
    (folder / "result.json").unlink()
    assert main(["study", str(path), "--no-publish"]) == 0
    assert {path: path.stat().st_mtime_ns for path in runs} == before
    assert from_json((folder / "result.json").read_text()).verdicts == result.verdicts
    with chromium() as browser, opened(browser, (folder / "report.html").as_uri()) as page:
        assert page.locator("#samples img").count() == 2
        assert page.locator("canvas").count() == 2 * 4, "curves, gradients and two charts of activations"
        assert "the same held-out" in page.inner_text("#audit")
