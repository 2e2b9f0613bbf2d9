"""What the documents show works: their code is taken out of them and run, their commands are parsed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from paribus.cli import _parser
from paribus.data.batches import Data
from paribus.data.images.spec import Images
from paribus.evaluation.contract import run_checks
from paribus.nn.component import make_mixer
from paribus.nn.mixer import Placement
from paribus.nn.settings import read_settings
from paribus.studies.equalizers import TOLERANCE, count_parameters, equalize
from paribus.studies.study import Study, read_study
from paribus.training.model import check_model
from paribus.training.run import Budget, Run
from paribus.training.task import make_task

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs" / "guides"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(GUIDES.glob("*.md")), *sorted((ROOT / "studies").glob("*/README.md"))]
COMMANDS = sorted(
    {line for path in DOCUMENTS for line in re.findall(r"^\.venv/bin/paribus (.+)$", path.read_text(), re.MULTILINE)}
)
IMPORTS = """
from dataclasses import dataclass
from torch import nn
from torch.nn import functional
from paribus.nn.kernels.scan import scan
from paribus.nn.mixer import Mixer
"""
MODEL = {"blocks": {"main": {"mixer": {"name": "attention"}, "channel": {"name": "glu"}}}, "layout": ["main"]}


def block(document: Path, language: str, beginning: str) -> str:
    """The one code block of a document that begins so."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = (text for text in blocks if text.startswith(beginning))
    return found


def test_the_mixer_of_the_read_me_keeps_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "leaky.py"
    path.write_text(IMPORTS + block(ROOT / "README.md", "python", "# src/paribus/nn/mixers/leaky.py"))
    failed = {result.check: result.message for result in run_checks(str(path)) if not result.passed}
    assert failed.keys() == {"documented"}, failed  # the docstring is what the excerpt leaves out


def test_the_mixer_of_the_guide_keeps_the_contract() -> None:
    guide = (GUIDES / "add_a_mixer.md").read_text()
    (name,) = re.findall(r'^--8<-- "(.+)"$', guide, re.MULTILINE)
    assert all(result.passed for result in run_checks(str(ROOT / name)))


def test_the_study_of_the_read_me_is_one() -> None:
    code = block(ROOT / "README.md", "python", "study = Study(")
    assert code.count("model={...}") == 1
    names = {"Study": Study, "Run": Run, "Data": Data, "Budget": Budget, "MODEL": MODEL}
    exec(code.replace("{...}", "MODEL"), names)
    study = names["study"]
    assert isinstance(study, Study)
    assert list(study.arms()) == ["attention", "gla", "mine"]


def test_the_study_of_the_guide_is_one(tmp_path: Path) -> None:
    path = tmp_path / "study.py"
    path.write_text(block(GUIDES / "first_study.md", "python", '"""Does a window'))
    study = read_study(path)
    runs = equalize(study).runs
    assert list(runs) == ["full", "window_64"]
    sizes = [count_parameters(run) for run in runs.values()]
    assert abs(sizes[1] / sizes[0] - 1) <= TOLERANCE


def test_the_arms_of_the_guide_are_mixers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    levels = eval(f"dict({block(GUIDES / 'add_a_mixer.md', 'python', 'vary=')})")["vary"]["model.blocks.main.mixer"]
    made = [make_mixer(settings, Placement(width=32)) for settings in levels.values()]
    assert [type(mixer).__name__ for mixer in made] == ["Attention", "LeakyAverage"]


def test_the_data_of_the_guide_can_be_read() -> None:
    def data(kind: str) -> Any:
        return json.loads("{" + block(GUIDES / "your_own_data.md", "json", f'"data": {{"{kind}"') + "}")["data"]

    assert read_settings(Data, data("corpora"), "data").corpora == {"python": 1.0, "notes/": 3.0}
    assert read_settings(Images, data("images"), "data").flip


@pytest.mark.parametrize("name", ["hidden_words", "which_digit", "draw_digits"])
def test_the_runs_of_the_guide_to_tasks_can_be_trained(name: str) -> None:
    run = Run.from_json(json.loads(block(GUIDES / "tasks.md", "json", f'{{"name": "{name}"')))
    check_model(run)
    assert make_task(run).sequence_length > 1


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command: str) -> None:
    _parser().parse_args(shlex.split(command))


def test_commands_are_found() -> None:
    verbs = {command.split()[0] for command in COMMANDS}
    assert {"check", "show", "study", "publish", "generate", "evaluate", "runs", "report"} <= verbs
