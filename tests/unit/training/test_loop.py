"""The loop, in one process: what it needs, what it leaves, and that nothing but the settings decides the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paribus.data.batches import TextBatches
from paribus.training import loop, setup
from paribus.training.journal import JOURNAL, read_journal
from paribus.training.load import load_run
from paribus.training.loop import Tick, train
from paribus.training.model import build_model
from paribus.training.run import with_values
from tests import small
from tests.small import journal, lasting, same_weights


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_run(folder)[1].state_dict()


def test_what_a_run_leaves(text: Path, cache: Path, tmp_path: Path) -> None:
    ticks: list[Tick] = []
    run = small.run(text, steps=10)
    result = train(run, tmp_path, cache, watch=ticks.append)
    assert (result["status"], result["step"], result["tokens"]) == ("finished", 10, 10 * 2 * 32)
    assert [tick.step for tick in ticks] == list(range(1, 11))
    events = read_journal(tmp_path / JOURNAL)
    assert [event["step"] for event in events if event["event"] == "evaluate"] == [5, 10]
    assert result["scores"]["validation"]["bits_per_byte"] == events[-1]["score"]
    assert result["batches_sha256"] == events[-1]["batches_sha256"]
    assert result["flops"] == result["flops_per_token"] * result["tokens"]
    assert events[0]["loss"] > events[-2]["loss"], "it learns"
    assert train(run, tmp_path, cache, watch=lambda tick: pytest.fail("trained again")) == result
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000010"]


def test_nothing_but_the_settings_decides(text: Path, cache: Path, tmp_path: Path) -> None:
    run = small.run(text)
    first = train(run, tmp_path / "first", cache)
    torch.manual_seed(99)
    torch.rand(5)
    second = train(with_values(run, {"name": "second"}), tmp_path / "second", cache)
    other = train(with_values(run, {"seed": 1}), tmp_path / "other", cache)
    assert lasting(first) == lasting(second)
    assert same_weights(tmp_path / "first", tmp_path / "second")
    assert journal(tmp_path / "first") == journal(tmp_path / "second")
    assert not same_weights(tmp_path / "first", tmp_path / "other")
    assert first["batches_sha256"] == other["batches_sha256"], "the order of the data has its own seed"


def test_budgets(text: Path, cache: Path, tmp_path: Path) -> None:
    run = small.run(text)
    tokens = train(with_values(run, {"budget.tokens": 640}), tmp_path / "tokens", cache)
    flops = train(with_values(run, {"budget.flops": tokens["flops"]}), tmp_path / "flops", cache)
    assert tokens["total_steps"] == flops["total_steps"] == 10
    assert tokens["scores"] == flops["scores"]


def test_a_budget_in_seconds_is_solved_once(
    text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_values(small.run(text), {"budget.seconds": 0.05})
    result = train(run, tmp_path / "timed", cache)
    recorded = (tmp_path / "timed" / "budget.json").read_text()
    steps = with_values(run, {"budget.steps": result["total_steps"]})
    assert lasting(train(steps, tmp_path / "steps", cache)) == lasting(result)
    assert same_weights(tmp_path / "timed", tmp_path / "steps"), "timing changed nothing"
    monkeypatch.setattr(setup, "_seconds_per_step", lambda trainer: pytest.fail("timed again"))
    (tmp_path / "timed" / "result.json").unlink()
    assert lasting(train(run, tmp_path / "timed", cache)) == lasting(result)
    assert (tmp_path / "timed" / "budget.json").read_text() == recorded


def test_one_process_trains_in_any_precision(text: Path, cache: Path, tmp_path: Path) -> None:
    run = small.run(text, steps=4)
    results = [
        train(with_values(run, {"precision": precision}), tmp_path / f"{index}", cache)
        for index, precision in enumerate(["fp32", "bf16", "fp32"])
    ]
    scores = [result["scores"]["test"]["bits_per_byte"] for result in results[:2]]
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], rel=0.01)


def test_checkpointed_gradients_are_the_same(text: Path, cache: Path, tmp_path: Path) -> None:
    run = small.run(text, steps=4)
    plain = train(run, tmp_path / "plain", cache)
    again = train(with_values(run, {"gradient_checkpointing": True}), tmp_path / "again", cache)
    assert plain["scores"]["test"]["bits_per_byte"] == pytest.approx(again["scores"]["test"]["bits_per_byte"], abs=1e-5)


@pytest.mark.parametrize(
    ("steps", "points", "divergence"),
    [
        (20, 0, "loss is nan at step 2"),
        (1, 1, "bits per byte is nan at step 1"),
        (1, 0, "validation bits per byte is nan at step 1"),
    ],
)
def test_divergence_is_a_result(
    text: Path, cache: Path, tmp_path: Path, steps: int, points: int, divergence: str
) -> None:
    """Whether a step, a measurement on the way or only the one at the end shows it."""
    values = {"optimizer.lr": 1e30, "optimizer.weight_decay": 1e10, "evaluation.points": points}
    run = with_values(small.run(text, steps=steps), values)
    result = train(run, tmp_path, cache)
    assert result["status"] == "diverged"
    assert result["scores"] is result["documents"] is result["sample"] is None
    assert result["divergence"] == divergence
    assert read_journal(tmp_path / JOURNAL)[-1]["event"] == "diverged"
    assert train(run, tmp_path, cache) == result, "it is not tried again"


def test_what_is_refused_leaves_no_folder(text: Path, cache: Path, tmp_path: Path) -> None:
    run = small.run(text)
    refused: dict[str, dict[str, Any]] = {
        "unknown mixer 'atention'; did you mean 'attention'": {"model.blocks.main.mixer.name": "atention"},
        "hidden_size|width": {"model.blocks.main.mixer.num_heads": 3},
        "max_position_embeddings is 64": {"data.sequence_length": 65},
        "vocab_size is 100; the tokenizer 'bytes' has 256 tokens": {"model.vocab_size": 100},
        "training tokens": {"data.sequence_length": 10**6, "model.max_position_embeddings": 10**6},
    }
    if not torch.cuda.is_available():
        refused["device is 'cuda'; this machine offers"] = {"device": "cuda"}
    for message, values in refused.items():
        with pytest.raises(ValueError, match=message):
            train(with_values(run, values), tmp_path / "refused", cache)
    assert not (tmp_path / "refused").exists()


def test_initial_weights_are_keyed_by_name(text: Path) -> None:
    two, three = (
        dict(build_model(with_values(small.run(text), {"model.num_hidden_layers": layers})).named_parameters())
        for layers in (2, 3)
    )
    assert two.keys() < three.keys()
    assert all(torch.equal(parameter, three[name]) for name, parameter in two.items())


def test_a_damaged_result_or_journal_is_made_again(text: Path, cache: Path, tmp_path: Path) -> None:
    run = small.run(text, steps=6)
    result = train(run, tmp_path, cache)
    events, first = journal(tmp_path), weights(tmp_path)
    for name, keep in (("result.json", 40), (JOURNAL, 700), (JOURNAL, 0)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:keep])
        assert lasting(train(run, tmp_path, cache)) == lasting(result)
        assert journal(tmp_path) == events
        assert all(torch.equal(first[key], value) for key, value in weights(tmp_path).items())


def test_the_hash_is_of_the_batches(text: Path, cache: Path, tmp_path: Path) -> None:
    run = small.run(text, steps=3)
    result = train(run, tmp_path, cache)
    batches = TextBatches(run.data, cache)
    expected = ""
    for step in range(3):
        expected = loop.hashlib.sha256((expected + batches.digest(batches.batch(step))).encode()).hexdigest()
    assert result["batches_sha256"] == expected
