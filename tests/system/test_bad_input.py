"""What a user can get wrong: exit status 2 and one clear line, and nothing lost."""

from __future__ import annotations

import multiprocessing
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from paribus.cli import main
from paribus.publish import ProofFailed
from paribus.training import loop
from paribus.training.files import read_json, write_json
from paribus.training.folder import find_run
from paribus.training.journal import JOURNAL
from tests import small

pytestmark = pytest.mark.slow

Refused = Callable[..., str]
STUDY = """
from dataclasses import replace
from pathlib import Path
from tests import small
text = Path({text!r})
"""


@pytest.fixture
def place(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.setenv("PARIBUS_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Gives the command to `main`, checks that it is refused with one line, and returns that line."""

    def refused(*arguments: object) -> str:
        capsys.readouterr()
        try:
            status: Any = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            status = end.code
        line = capsys.readouterr().err
        assert status == 2
        assert line.startswith("paribus"), line
        assert line.count("\n") == 1 and line.endswith("\n"), line
        return line.removesuffix("\n")

    return refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.blocks.main.mixer.name=atention"], "unknown mixer 'atention'; did you mean 'attention'?"),
        (["model.blocks.main.mixer.numheads=2"], "unknown key 'numheads'; did you mean 'num_heads'?"),
        (["model.blocks.main.mixer.name=mine.py"], "mixer file 'mine.py' does not exist"),
        (["model.blocks.main.channel.name=gluu"], "unknown channel 'gluu'; did you mean 'glu'?"),
        (["model.hidden_sise=8"], "model: unknown key 'hidden_sise'; did you mean 'hidden_size'?"),
        (["optimizer.learning_rate=1"], "unknown setting 'optimizer.learning_rate'"),
        (['data.corpora={"wikki": 1}'], "unknown corpus 'wikki' (and no such file or folder); did you mean 'wiki'?"),
        (['data.corpora={"gone.txt": 1}'], "there is no file or folder gone.txt"),
        (["data.corpora={}"], "corpora is empty"),
        (["model.hidden_size=18"], "18"),
        (["data.sequence_length=128"], "max_position_embeddings is 64"),
        (["data.sequence_length=99999999", "model.max_position_embeddings=99999999"], "one sequence needs 100000000"),
        (["budget.steps=many"], "steps is 'many'"),
        (["budget.steps"], "override 'budget.steps' has no '='"),
        (["data.tokenizer=nowhere/at/all"], "tokenizer 'nowhere/at/all'"),
        (["seed=-1"], "seed is -1"),
    ],
)
def test_settings(refused: Refused, place: Path, text: Path, overrides: list[str], message: str) -> None:
    assert message in refused("run", small.run_file(place / "run.json", text), *overrides)
    assert not (place / "runs").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no text in it"),
        (b" \n\n \n", "has no text in it"),
        (b"caf\xe9 " * 1000, "is not UTF-8 text: invalid continuation byte at byte 3"),
        (b"a word\n\n" * 3, "has only 1 document"),
        (b"".join(b"line %d\n\n" % number for number in range(2000)), "training tokens"),
    ],
)
def test_corpora(refused: Refused, place: Path, content: bytes, message: str) -> None:
    text = place / "bad.txt"
    text.write_bytes(content)
    run = small.run_file(place / "run.json", text)
    values = ["data.sequence_length=50000", "model.max_position_embeddings=50000"]
    line = refused("run", run, *values)
    assert message in line
    assert "bad.txt" in line


def test_words_of_the_command_line(refused: Refused, place: Path) -> None:
    (place / "not.json").write_text("{")
    for arguments, message in {
        ("rum",): "invalid choice: 'rum'",
        (): "required: VERB",
        ("run",): "required: RUN.json",
        ("run", "gone.json"): "run file 'gone.json' cannot be read: No such file or directory",
        ("run", "not.json"): "run file 'not.json' is not JSON",
        ("study", "gone.py"): "study file 'gone.py' does not exist",
        ("study", "gone.py", "--workers", "0"): "'0' is not a positive whole number",
        ("study", "gone.py", "--workers", "two"): "'two' is not a positive whole number",
        ("show", "mixer", "glaa"): "unknown mixer 'glaa'; did you mean 'gla'?",
        ("show", "mixer", "attention", "--width", "3"): "3",
        ("check", "mixer", "gone.py"): "mixer file 'gone.py' does not exist",
        ("list", "mixer"): "invalid choice: 'mixer'",
        ("report", "gone"): "'gone' has no readable result.json: No such file or directory",
        ("publish", "gone", "out"): "'gone' is not a run",
        ("generate", "gone", "prompt"): "'gone' is neither a run (run.json) nor a Hugging Face folder",
        ("evaluate", "gone"): "'gone' is neither a run",
        ("runs", "remove", "gone"): "'gone' is not a run",
        ("runs", "compare", "gone"): "'gone' is not a run",
    }.items():
        assert message in refused(*arguments), arguments


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("study = small.study(text", "cannot be imported: SyntaxError"),
        ("study = 3", "defines no Study called 'study'"),
        ("study = small.study(text, seeds=())", "study: no seeds"),
        ("study = small.study(text, seeds=(1, 2, 2))", "seeds [1, 2, 2] repeat one"),
        (
            "study = small.study(text, tune={'optimizer.lr': [1e-3]}, tuning_seed=2)",
            "tuning_seed 2 is one of the seeds",
        ),
        ("study = small.study(text, vary={'optimizer.lr': {'attention': 1}})", "1 arms (attention)"),
        (
            "study = small.study(text, vary={'optimizer.lrr': {'attention': 1, 'b': 2}})",
            "unknown setting 'optimizer.lrr'",
        ),
        (
            "study = small.study(text, vary={'model.blocks.main.mixer.name': {'attention': 'attention', 'b': 'glaa'}})",
            "arm 'b': block 'main': mixer: unknown mixer 'glaa'",
        ),
        ("study = replace(small.study(text), base=small.run(Path('gone.txt')))", "there is no file or folder gone.txt"),
    ],
)
def test_studies(refused: Refused, place: Path, text: Path, code: str, message: str) -> None:
    (place / "mine.py").write_text(STUDY.format(text=str(text)) + code)
    assert message in refused("study", "mine.py", "--workers", 1)
    assert not list(place.glob("runs/*/run.json"))


def test_a_name_that_is_taken(refused: Refused, place: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small.run_file(place / "run.json", text, steps=2)
    assert main(["run", str(run)]) == 0
    assert "run name 'small' is taken by" in refused("run", run, "optimizer.lr=0.5")
    assert main(["run", str(run), "optimizer.lr=0.5", "name=fast"]) == 0
    assert len(list(place.glob("runs/*/result.json"))) == 2


def test_divergence_is_told(place: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small.run_file(place / "run.json", text, steps=30)
    assert main(["run", str(run), "optimizer.lr=1e30"]) == 0
    assert "diverged after 2 steps, loss is nan at step 2" in capsys.readouterr().out
    assert main(["runs", "list"]) == 0
    assert "diverged: loss is nan at step 2" in capsys.readouterr().out
    (folder,) = place.glob("runs/small-*")
    for arguments in (["publish", str(folder), "out"], ["generate", str(folder), "a"]):
        assert main(arguments) == 2


def test_a_failed_proof_is_one_line(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Path, out: Path) -> Path:
        raise ProofFailed("the published model fails its proof:\n  the logits differ")

    monkeypatch.setattr("paribus.publish.publish_run", fail)
    line = refused("publish", "run", "out")
    assert line == "paribus: the published model fails its proof: the logits differ"


def damage(path: Path) -> None:
    """Cut a file in the middle of a line."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("name", [JOURNAL, "result.json", "checkpoints/00000009/model.safetensors"])
def test_truncated_files_of_a_run(place: Path, text: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after some steps, damaged, continued: the same as undisturbed."""
    run = small.run_file(place / "run.json", text, steps=12)
    assert main(["run", str(run), "--root", "undisturbed"]) == 0
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    save = loop.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", lambda *a: save(*a) if a[2].step < 10 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["run", str(run)])
    (folder,), (undisturbed,) = place.glob("runs/*"), place.glob("undisturbed/*")
    if name == "result.json":
        assert main(["run", str(run)]) == 0
    damage(folder / name)
    assert main(["run", str(run)]) == 0
    results = [read_json(at / "result.json") for at in (folder, undisturbed)]
    assert small.lasting(results[0]) == small.lasting(results[1])
    assert small.journal(folder) == small.journal(undisturbed)
    assert small.same_weights(folder, undisturbed)


def test_stale_and_damaged_records(refused: Refused, place: Path, text: Path) -> None:
    run = small.run_file(place / "run.json", text, steps=2)
    assert main(["run", str(run)]) == 0
    (path,) = place.glob("runs/*/run.json")
    record = read_json(path)
    write_json(path, {**record, "sources": {**record["sources"], "nn/block.py": "0"}})
    assert "is stale: nn/block.py changed since; remove it to train anew, or pass --accept-stale" in refused("run", run)
    assert main(["run", str(run), "--accept-stale"]) == 0
    write_json(path, {**record, "manifests": {}})
    assert "was trained on other data" in refused("run", run)
    damage(path)
    assert "is not a run: it has no readable run.json" in refused("run", run)


def test_two_processes_start_the_same_run(refused: Refused, place: Path, text: Path, cache: Path) -> None:
    run = small.run(text, steps=100_000)
    folder = find_run(place / "runs", run)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["paribus.training.loop", "tests.small"])
    process = server.Process(target=small.train_and_die, args=(run, folder, cache, 0))
    process.start()
    try:
        end = time.monotonic() + 60
        while not (folder / JOURNAL).exists() and time.monotonic() < end:
            time.sleep(0.05)
        line = refused("run", small.run_file(place / "run.json", text, steps=100_000))
        assert f"is being trained by process {process.pid}" in line
        assert process.is_alive(), "the first one trains on"
    finally:
        process.kill()
        process.join()


Free = Callable[[], None]


@contextmanager
def full_disk(folder: Path) -> Iterator[tuple[Path, str, Free]]:
    """A place that is full after two checkpoints, what the system says then, and what makes room.

    A small file system where one may be mounted; elsewhere a limit on the size of files.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    found = subprocess.run([*mount, "size=320k", "tmpfs", folder], capture_output=True, text=True)
    if found.returncode == 0:
        try:
            yield (
                folder,
                "No space left on device",
                lambda: subprocess.run(["mount", "-o", "remount,size=16m", folder], check=True),
            )
        finally:
            subprocess.run(["umount", folder], check=True)
        return
    print(f"files are limited to 60,000 bytes, as nothing can be mounted: {found.stderr.strip()}")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        yield folder, "File too large", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk(refused: Refused, place: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small.run_file(place / "run.json", text, steps=12)
    assert main(["run", str(run), "--root", "undisturbed"]) == 0
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with full_disk(place / "small") as (root, reason, free):
        line = refused("run", run, "--root", root)
        (folder,), (undisturbed,) = root.glob("*"), place.glob("undisturbed/*")
        assert reason in line and str(folder) in line
        assert not (folder / "result.json").exists()
        free()
        assert main(["run", str(run), "--root", str(root)]) == 0
        results = [read_json(at / "result.json") for at in (folder, undisturbed)]
        assert small.lasting(results[0]) == small.lasting(results[1])
        assert small.journal(folder) == small.journal(undisturbed)
        assert small.same_weights(folder, undisturbed)
        assert not list(folder.rglob(".unfinished"))
