"""Adding a mixer is adding one file, inside the package or outside of it: the same life for both."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import paribus
from paribus.cli import main
from paribus.nn.task import TASKS
from paribus.publish import load_published
from paribus.studies.result import from_json
from paribus.training.files import read_json
from paribus.training.journal import read_journal

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SUMMARY = "Two averages of each channel, a quick and a slow one, of which the difference is read."
MIXER = f'''"""{SUMMARY}

    h[t] = a ⊙ h[t-1] + (1 − a) ⊙ W x[t]          y[t] = W_o (h_quick[t] − h_slow[t] + W x[t])

Paper:    none
Differs:  nothing to differ from
Shapes:   h, a [B, T, 2 D]; state [B, 2 D]
Cost:     4 D² FLOPs a token; state 2 D numbers
Raises:   ValueError if memory is 0 tokens or less
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.scan import scan
from ..mixer import Context, Mixer, Placement
from ..segments import Rows
from ..state import State


class TwoAverages(Mixer):
    """The difference of two averages."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the averages."""

        memory: float = 16.0
        """Tokens that the slow average remembers, before training."""

    def __init__(self, placement: Placement, config: Config) -> None:
        super().__init__(placement, config)
        if config.memory <= 0:
            raise ValueError(f"zzz: memory is {{config.memory}}; a positive number of tokens is needed")
        self.value = nn.Linear(placement.width, placement.width, bias=False)
        self.output = nn.Linear(placement.width, placement.width, bias=False)
        self.quick, self.slow = (nn.Parameter(torch.empty(placement.width)) for _ in range(2))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.quick, 1.0)
        nn.init.constant_(self.slow, self.config.memory)

    def mix(self, x: Tensor, rows: Rows, state: State, context: Context | None) -> tuple[Tensor, State]:
        value = self.value(x)
        log_decay = -1 / (1 + functional.softplus(torch.cat([self.quick, self.slow])))
        inputs = -torch.expm1(log_decay) * torch.cat([value, value], -1)
        h, state = scan(
            inputs, log_decay.expand_as(inputs), rows=rows, state=state, causal=self.placement.causal
        )
        quick, slow = h.chunk(2, -1)
        return self.output(quick - slow + value), state
'''
MINE = MIXER.replace("from ..", "from paribus.nn.")
MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "blocks": {"main": {"mixer": {"name": "attention"}, "channel": {"name": "glu"}}},
    "layout": ["main"],
}
RUN = {
    "name": "alone",
    "model": MODEL,
    "data": {"corpora": {"products.txt": 1.0}, "sequence_length": 64, "batch_size": 4},
    "budget": {"steps": 40},
    "optimizer": {"lr": 0.01},
    "evaluation": {
        "points": 1,
        "validation_documents": 4,
        "test_documents": 4,
        "max_bytes_per_document": 128,
    },
}
STUDY = """
from pathlib import Path

from paribus.studies.study import Study
from paribus.training.run import read_run

study = Study(
    question="Do two averages do what attention does?",
    base=read_run(Path("run.json")),
    vary={{"model.blocks.main.mixer": {{"attention": {{"name": "attention"}}, "new": {{"name": {name!r}}}}}}},
    reference="attention",
    seeds=(1,),
)
"""


def command(*arguments: str) -> str:
    """What `paribus` with these arguments prints; it must succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
        status = main(arguments)
    assert status == 0, f"paribus {' '.join(arguments)}: {output.getvalue()[-2000:]}{errors.getvalue()[-2000:]}"
    return output.getvalue()


def live(name: str) -> None:
    """Show, check, train, compare and publish the mixer `name` in the current folder."""
    products = (f"{i} times {j} is {i * j}.\n\n" for i in range(50) for j in range(50))
    Path("products.txt").write_text("".join(products))
    Path("run.json").write_text(json.dumps(RUN))
    Path("question.py").write_text(STUDY.format(name=name))

    shown = command("show", "mixer", name, "--width", "32", "--length", "64")
    assert SUMMARY in shown and "memory = 16.0" in shown
    assert "FAIL" not in command("check", "mixer", name)

    command("run", "run.json", f"model.blocks.main.mixer.name={name}")
    (folder,) = Path("runs").glob("alone-*")
    losses = [event["loss"] for event in read_journal(folder / "journal.jsonl") if event["event"] == "train"]
    assert losses[-1] < 0.75 * losses[0], losses

    command("study", "question.py", "--workers", "1", "--no-publish")
    result = from_json(Path("runs", "question", "result.json").read_text())
    assert [arm.name for arm in result.arms if arm.mean is not None] == ["attention", "new"]
    assert abs(result.audit.ratios["new"]["parameters"] - 1) < 0.005

    command("publish", str(folder), "published")  # ends with the proof in a process that cannot see the library


def live_inside() -> None:
    """The life of `zzz`, when this file is run against a copy of the package that has it."""
    assert Path(str(paribus.__file__)).is_relative_to(Path.cwd())
    assert SUMMARY in command("list", "mixers")
    pages = runpy.run_path("docs/generate.py")["pages"]()
    assert f"| [`zzz`](#zzz) | {SUMMARY} |" in pages["components/mixers.md"]
    tests = runpy.run_path("tests/contract/test_mixers.py")["test_mixer"]
    assert "zzz" in next(mark for mark in tests.pytestmark if mark.args[0] == "name").args[1]
    live("zzz")


def live_in_tasks(name: str) -> None:
    """Train and judge the mixer `name` in each task, in the current folder; the model and its data are the task's."""
    image, digits = {"size": 8, "patch_size": 2, "num_channels": 3}, {"images": "digits", "batch_size": 4}
    few = {"points": 1, "validation_images": 8, "test_images": 8, "sampling": {"num_images": 0}}
    in_task: dict[str, dict[str, Any]] = {
        "causal_lm": {"task": {"name": "causal_lm", "prefix": True}},
        "masked_lm": {"causal": False},
        "image_classification": {"causal": False, "image": image},
        "image_generation": {"causal": False, "image": image, "residual": "adaln_zero"},
    }
    assert sorted(in_task) == TASKS.names()
    for task, model in in_task.items():
        residual = model.pop("residual", "pre")
        block = {"mixer": {"name": name}, "channel": {"name": "glu"}, "residual": {"name": residual}}
        settings = {**RUN, "name": task, "model": {**MODEL, "task": {"name": task}, **model, "blocks": {"main": block}}}
        if "image" in model:
            settings |= {"data": digits, "evaluation": few}
        if task == "causal_lm":
            settings["objective"] = {"max_prefix_share": 0.5}
        Path("task.json").write_text(json.dumps({**settings, "budget": {"steps": 2}}))
        command("run", "task.json")
        (folder,) = Path("runs").glob(f"{task}-*")
        assert read_json(folder / "result.json")["status"] == "finished"


def check_reload() -> None:
    """What was published loads and gives the logits of its proof."""
    model, _ = load_published(Path("published"))
    proof = load_file("published/proof.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(proof["input_ids"]).logits, proof["logits"])


def test_a_file_inside_the_package(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=ignored)
    for name in ("docs/generate.py", "tests/contract/test_mixers.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "src" / "paribus" / "nn" / "mixers" / "zzz.py").write_text(MIXER)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PARIBUS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, __file__], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "mixers_zzz.py" in {path.name for path in (tmp_path / "published").iterdir()}


def test_a_file_outside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARIBUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    mine = Path("path", "to", "mine.py")
    mine.parent.mkdir(parents=True)
    mine.write_text(MINE)
    live(str(mine))
    live_in_tasks(str(mine))
    mine.unlink()
    check_reload()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            MINE + "\n\nclass Second(TwoAverages):\n    pass\n",
            r"define exactly one Mixer; it defines TwoAverages, Second$",
        ),
        (MINE.replace("def mix(", "def mix(:"), r"mixer file '.*mine\.py' cannot be imported: invalid syntax"),
        (None, r"mixer file '.*mine\.py' does not exist$"),
        (
            MINE.replace("causal=self.placement.causal", "causal=False"),
            r"^FAIL  causal .* outputs before token 1 when later tokens change: off by",
        ),
        (
            MINE.replace("rows=rows", "rows=__import__('dataclasses').replace(rows, valid=None, starts=None)"),
            r"^FAIL  padding ",
        ),
    ],
    ids=["two_mixers", "syntax", "missing", "future", "padding"],
)
def test_a_bad_file_is_told(
    text: str | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    if text is not None:
        assert text != MINE
        mine.write_text(text)
    assert main(["check", "mixer", str(mine)]) == 2
    captured = capsys.readouterr()
    assert re.search(expected, captured.out + captured.err, re.MULTILINE)
    assert "Traceback" not in captured.err


if __name__ == "__main__":
    live_inside()
