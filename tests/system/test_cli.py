"""The command line as a new user goes through it, on tiny data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from paribus.cli import KINDS, main
from paribus.nn.component import MIXERS
from paribus.studies.progress import RunProgress, StudyProgress
from paribus.training.loop import Tick
from tests import small

pytestmark = pytest.mark.slow

VERBS = ("list", "show", "check", "run", "study", "report", "publish", "generate", "evaluate", "runs")
HELP = """
import contextlib, io, sys
from paribus.cli import main
for verb in {verbs!r}:
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main([*verb.split(), "--help"])
    assert text.getvalue().startswith("usage: paribus " + verb), text.getvalue()
heavy = {{"torch", "transformers", "numpy", "rich", "scipy"}} & sys.modules.keys()
assert not heavy, heavy
"""
Output = Callable[..., str]


@pytest.fixture
def output(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Output:
    """Gives a command to `main` in an empty working directory and returns what it prints."""
    monkeypatch.setenv("PARIBUS_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)

    def output(*arguments: object, status: int = 0) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == status
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return output


def test_help_imports_nothing_heavy() -> None:
    verbs = ("", *VERBS, "runs list", "runs compare", "runs remove")
    subprocess.run([sys.executable, "-c", HELP.format(verbs=verbs)], check=True)


def test_reading_half_the_output_is_no_error() -> None:
    code = "import sys; from paribus.cli import main; sys.exit(main(['list', 'mixers']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_list(output: Output) -> None:
    everything = output("list")
    for kind in KINDS:
        assert f"{kind}:\n" in everything
        lines = output("list", kind).splitlines()[1:]
        assert lines and all(len(line.split()) > 1 for line in lines), f"every one of the {kind} has a description"
        assert all(line in everything for line in lines)
    names = {line.split()[0] for line in output("list", "mixers").splitlines()[1:]}
    assert set(MIXERS.names()) <= names


@pytest.mark.parametrize("name", MIXERS.names())
def test_show(output: Output, name: str) -> None:
    shown = output("show", "mixer", name, "--width", 32, "--length", 64)
    assert "Paper:" in shown
    assert "Measured at width 32, 64 tokens" in shown
    for label in ("parameters", "FLOPs a token, forward", "FLOPs a token, training", "state after 64 tokens"):
        assert label in shown


def test_show_channel(output: Output) -> None:
    shown = output("show", "channel", "glu", "--width", 24, "--length", 8)
    assert f"{3 * 24 * 64:,}" in shown, "parameters"
    assert f"{6 * 24 * 64:,}" in shown, "FLOPs"
    assert "state" not in shown.partition("Measured")[2]


def test_check(output: Output, tmp_path: Path) -> None:
    assert "FAIL" not in output("check", "channel", "mlp")
    source = Path(sys.modules["paribus"].__path__[0]) / "nn" / "channels" / "mlp.py"
    broken = source.read_text().replace("from ..", "from paribus.nn.").replace("return self.", "return 0 * self.")
    (tmp_path / "broken.py").write_text(broken)
    assert "FAIL" in output("check", "channel", "broken.py", status=2)


def test_from_a_run_to_text(output: Output, text: Path, tmp_path: Path) -> None:
    run = small.run_file(tmp_path / "first.json", text)
    printed = output("run", run, "budget.steps=40", "optimizer.lr=1e-2")
    lines = printed.splitlines()
    assert lines[0].startswith("step 4/40  loss "), "plain lines, as this is no terminal"
    assert len(lines) == 11
    assert "finished after 40 steps" in lines[-1] and "bits per byte (test)" in lines[-1]
    again = output("run", run, "budget.steps=40", "optimizer.lr=1e-2")
    assert again == lines[-1] + "\n", "it is not trained again"

    output("run", run, "name=second", "model.blocks.main.mixer.name=gla")
    (first,), (second,) = tmp_path.glob("runs/small-*"), tmp_path.glob("runs/second-*")
    listed = output("runs", "list").splitlines()
    assert [line.split()[0] for line in listed] == [second.name, first.name]
    assert all("bits per byte (test)" in line and "stale" not in line for line in listed)
    compared = output("runs", "compare", first, second)
    assert "  model.blocks.main.mixer.name: attention → gla" in compared
    assert "  optimizer.lr: 0.01 → 0.003" in compared

    generated = output("generate", first, "the cat", "--tokens", 20)
    assert generated.startswith("the cat") and len(generated) > 8
    assert output("generate", first, "the cat", "--tokens", 20) == generated
    assert output("generate", first, "the cat", "--tokens", 20, "--seed", 1) != generated

    measured = output("evaluate", first, "--documents", 6)
    assert measured.split()[-3:] == ["bits", "per", "byte"]
    assert 0 < float(measured.split()[1]) < 8
    both = output(
        "evaluate", first, "--corpus", text, "--corpus", small.write_text(tmp_path / "b.txt"), "--documents", 6
    )
    assert len(both.splitlines()) == 3 and both.splitlines()[-1].startswith("all")

    assert output("runs", "remove", first) == f"removed {first}\n"
    assert not first.exists()
    assert len(output("runs", "list").splitlines()) == 1


def ticks() -> list[Tick]:
    return [Tick(step, 1000, 2.0, 1e4, 1.0) for step in range(5, 1001, 5)]


def test_progress_elsewhere_than_on_a_terminal() -> None:
    console = Console(force_terminal=False, width=80)
    with console.capture() as capture, RunProgress(console, "[run]") as progress:
        for tick in ticks():
            progress.watch(tick)
    lines = capture.get().splitlines()
    assert len(lines) == 10
    assert lines[-1] == "step 1,000/1,000  loss 2.000, 10,000 tokens/s"


def test_progress_on_a_terminal(text: Path) -> None:
    console = Console(force_terminal=True, width=120)
    with console.capture() as capture:
        with RunProgress(console, "[run]") as progress:
            for tick in ticks()[:3]:
                progress.watch(tick)
            progress._bar.refresh()
        with StudyProgress(console) as study:
            study.expect(3)
            study.watch(small.task(text), ticks()[0])
            study._live.refresh()
    shown = capture.get()
    assert "[run]" in shown and "15/1000" in shown and "loss 2.000, 10,000 tokens/s" in shown
    assert "5/1,000" in shown and "small" in shown and "0/3" in shown
