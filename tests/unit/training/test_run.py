"""The description of a run: JSON there and back, mistakes, overrides, fingerprints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from paribus.optim.optimizer import Role
from paribus.training.run import Budget, Evaluation, Run, parse_override, read_run, with_values
from tests import small


@pytest.fixture
def run() -> Run:
    return small.run(Path("/somewhere/my.text.txt"))


def test_json_there_and_back(run: Run) -> None:
    text = json.dumps(run.to_json())
    assert Run.from_json(json.loads(text)) == run
    assert Run.from_json(json.loads(text)).fingerprint() == run.fingerprint()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("modle",), "run: unknown key 'modle'; did you mean 'model'?"),
        (("optimizer", "learning"), "optimizer: unknown key 'learning'"),
        (("model", "hiden_size"), "model: unknown key 'hiden_size'; did you mean 'hidden_size'?"),
        (("data", "batchsize"), "unknown key 'batchsize'; did you mean 'batch_size'?"),
        (("budget", "step"), "unknown key 'step'; did you mean 'steps'?"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(run: Run, path: tuple[str, ...], message: str) -> None:
    settings = run.to_json()
    here = settings
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = 1
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Run.from_json(settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"name": ""}, "name is ''"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"threads": 0}, "threads is 0"),
        ({"device": "gpu"}, "device is 'gpu'; allowed: 'cpu', 'cuda', 'mps'"),
        ({"optimizer.lr": float("nan")}, "lr is nan"),
        ({"optimizer.lr": "fast"}, "lr is 'fast'"),
        ({"optimizer.roles.haed.lr": 0.1}, "unknown role 'haed'; did you mean 'head'?"),
        ({"optimizer.roles.head.rl": 0.1}, "unknown key 'rl'; did you mean 'lr'?"),
        ({"model.embedding.rnk": 4}, "model: embedding: unknown key 'rnk'; did you mean 'rank'?"),
        ({"optimizer.settings": {"betas": [0.9]}}, "optimizer 'adamw': settings {'betas': [0.9]}"),
        ({"optimizer.settings": {"betas": [0.9, 1.5]}}, "settings {'betas': [0.9, 1.5]}"),
        ({"schedule.warmup": 1.5}, "warmup is 1.5"),
        ({"schedule.name": "wsd", "schedule.warmup": 0.9}, "more than the whole run"),
        ({"evaluation.points": -1}, "points is -1"),
        ({"evaluation.test_documents": 0}, "test_documents is 0"),
        ({"evaluation.max_bytes_per_document": 1}, "max_bytes_per_document is 1"),
        ({"budget.steps": 0}, "steps is 0"),
        ({"budget.tokens": 1e6}, "1000000.0"),
        ({"budget.seconds": float("inf")}, "seconds is inf"),
        ({"budget.stepz": 3}, "unknown setting 'budget.stepz'; did you mean 'steps'"),
        ({"optimiser.lr": 1.0}, "unknown setting 'optimiser.lr'; did you mean 'optimizer'"),
        ({"optimizer.lr.peak": 1.0}, "unknown setting 'optimizer.lr.peak'"),
        ({"": 1}, "unknown setting ''"),
    ],
)
def test_values_that_do_not_fit(run: Run, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        with_values(run, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_budget_is_one_number(run: Run) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Budget()
    with pytest.raises(ValueError, match="exactly one"):
        Budget(steps=1, tokens=1)
    assert with_values(run, {"budget.flops": 1e9}).budget == Budget(flops=1e9)


def test_values_reach_their_place(run: Run) -> None:
    changed = with_values(run, {"optimizer.lr": 1, "model.blocks.main.mixer.num_heads": 2, "evaluation": {"points": 3}})
    assert (changed.optimizer.lr, changed.evaluation) == (1.0, Evaluation(points=3))
    assert changed.model["blocks"]["main"]["mixer"] == {"name": "attention", "num_heads": 2}
    assert run == small.run(Path("/somewhere/my.text.txt")), "the original is untouched"


def test_the_name_of_a_corpus_may_have_dots(run: Run) -> None:
    changed = with_values(run, {"data.corpora./other/b.txt": 2, "data.corpora./somewhere/my.text.txt": 3})
    assert changed.data.corpora == {"/other/b.txt": 2.0, "/somewhere/my.text.txt": 3.0}


def test_default_blocks_can_be_changed(run: Run) -> None:
    settings = run.to_json()
    del settings["model"]["blocks"]
    changed = with_values(Run.from_json(settings), {"model.blocks.main.mixer.name": "gla"})
    assert changed.model["blocks"]["main"]["mixer"] == {"name": "gla"}
    assert with_values(Run.from_json(settings), {"seed": 1}).model == settings["model"]
    again = with_values(Run.from_json(settings), {"seed": 1, "model.blocks.main.channel.expansion": 2.0})
    assert again.model["blocks"]["main"]["mixer"] == {"name": "attention"}


def test_the_fingerprint_is_of_everything_that_decides_the_weights(run: Run) -> None:
    for values in ({"name": "other"}, {"parallel": "shard"}):
        assert with_values(run, values).fingerprint() == run.fingerprint()
    changes = [{"seed": 1}, {"data.seed": 1}, {"threads": 2}, {"optimizer.lr": 0.1}, {"model.hidden_size": 24}]
    fingerprints = {with_values(run, values).fingerprint() for values in changes}
    assert len({*fingerprints, run.fingerprint()}) == len(changes) + 1


def test_whole_numbers_and_floats_are_the_same_number(run: Run) -> None:
    one = dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, lr=1))
    assert one.fingerprint() == with_values(run, {"optimizer.lr": 1.0}).fingerprint()
    assert Run.from_json(one.to_json()).fingerprint() == one.fingerprint()


def test_overrides() -> None:
    assert parse_override("optimizer.lr=1e-3") == ("optimizer.lr", 0.001)
    assert parse_override("schedule.name=wsd") == ("schedule.name", "wsd")
    assert parse_override('data.corpora={"a": 1}') == ("data.corpora", {"a": 1})
    assert parse_override("name=a=b") == ("name", "a=b")
    with pytest.raises(ValueError, match="override 'lr' has no '='"):
        parse_override("lr")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"name": "x"', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "expected an object"),
        (b'{"name": "x"}', "missing key"),
    ],
)
def test_damaged_run_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_run(path)
    assert "\n" not in str(caught.value)


def test_an_absent_run_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.json' cannot be read: No such file"):
        read_run(tmp_path / "absent.json")


def test_settings_of_a_role_and_of_the_embedding_are_a_path_each(run: Run) -> None:
    changed = with_values(run, {"optimizer.roles.head.lr": 0.1, "optimizer.roles.gate.weight_decay": 0.5})
    assert changed.optimizer.roles == {"head": Role(lr=0.1), "gate": Role(weight_decay=0.5)}
    assert with_values(run, {"model.embedding.rank": 4}).model["embedding"] == {"rank": 4}
