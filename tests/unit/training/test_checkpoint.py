"""Checkpoints: what is loaded is what was saved, and only what is whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from paribus.nn.model_settings import read_model_config
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.training import checkpoint
from paribus.training.average import Average
from paribus.training.checkpoint import Progress, gather, load_checkpoint, load_evaluated, save_checkpoint

Parts = tuple[nn.Module, torch.optim.Optimizer]


def parts(tied: bool = True, width: int = 8) -> Parts:
    """A model and an optimizer that has taken a step."""
    config = read_model_config({"hidden_size": width, "num_hidden_layers": 1, "tie_word_embeddings": tied})
    model = ParibusForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    ids = torch.randint(256, (2, 9))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def equal(one: Parts, other: Parts) -> bool:
    states = [optimizer.state_dict()["state"] for _, optimizer in (one, other)]
    return all(map(torch.equal, one[0].parameters(), other[0].parameters())) and all(
        torch.equal(states[0][index][key], states[1][index][key]) for index in states[0] for key in states[0][index]
    )


@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back(tmp_path: Path, tied: bool) -> None:
    saved, progress = parts(tied), Progress(7, 1.5, "abc", 9)
    save_checkpoint(tmp_path, gather(*saved), progress)
    drawn = torch.rand(3)
    loaded = parts(tied)
    assert not equal(saved, loaded)
    assert load_checkpoint(tmp_path, *loaded) == progress
    assert equal(saved, loaded)
    assert torch.equal(torch.rand(3), drawn), "the generator continues from the checkpoint"


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    saved = parts()
    for number in (1, 2, 3):
        save_checkpoint(tmp_path, gather(*saved), Progress(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002", "00000003"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "absent", "changed"])
def test_a_damaged_checkpoint_is_passed_over_and_replaced(tmp_path: Path, name: str, damage: str) -> None:
    older, newer, loaded = parts(), parts(), parts()
    save_checkpoint(tmp_path, gather(*older), Progress(1))
    save_checkpoint(tmp_path, gather(*newer), Progress(2))
    path = tmp_path / "00000002" / name
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if damage == "truncated" else content[:-3] + b"xyz")
    assert load_checkpoint(tmp_path, *loaded).step == 1
    assert equal(older, loaded)
    save_checkpoint(tmp_path, gather(*newer), Progress(2))
    assert load_checkpoint(tmp_path, *loaded).step == 2
    assert equal(newer, loaded)


def test_a_later_damaged_checkpoint_never_displaces_a_whole_one(tmp_path: Path) -> None:
    saved = parts()
    for number in (10, 90):
        save_checkpoint(tmp_path, gather(*saved), Progress(number))
    (tmp_path / "00000090" / "state.json").unlink()
    save_checkpoint(tmp_path, gather(*saved), Progress(11))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000010", "00000011"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = parts()
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(checkpoint, "sync_file", lambda path: os.kill(os.getpid(), 9))
        save_checkpoint(tmp_path, gather(*saved), Progress(1))
    os.waitpid(child, 0)
    assert list(tmp_path.rglob("model.safetensors")), "it was killed in the middle"
    assert load_checkpoint(tmp_path, *saved) == Progress()
    save_checkpoint(tmp_path, gather(*saved), Progress(2))
    assert [path.name for path in tmp_path.iterdir()] == ["00000002"]


def test_a_checkpoint_needs_its_journal(tmp_path: Path) -> None:
    saved = parts()
    save_checkpoint(tmp_path, gather(*saved), Progress(1, journal_events=3))
    save_checkpoint(tmp_path, gather(*saved), Progress(2, journal_events=6))
    assert [load_checkpoint(tmp_path, *saved, events).step for events in (6, 5, 3, 2)] == [2, 1, 1, 0]


def test_the_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, gather(*parts()), Progress(1))
    with pytest.raises(ValueError, match="holds other tensors"):
        load_checkpoint(tmp_path, *parts(tied=False))
    with pytest.raises(ValueError, match="holds other tensors"):
        load_checkpoint(tmp_path, *parts(width=16))


def test_evaluated_weights_lie_beside_the_trained_ones(tmp_path: Path) -> None:
    model, optimizer = parts()
    average = Average(model, 0.5)
    for number in (1, 2):
        step(model, optimizer)
        average.update(model, number)
        save_checkpoint(tmp_path, gather(model, optimizer, average), Progress(number))
    expected = {name: tensor.clone() for name, tensor in average.tensors.items()}
    other, _ = parts()
    assert load_evaluated(tmp_path, other) == 2
    assert all(torch.equal(parameter, expected[name]) for name, parameter in other.named_parameters())
    step(model, optimizer)
    average.update(model, 3)
    assert load_checkpoint(tmp_path, model, optimizer, average=average).step == 2
    assert all(torch.equal(average.tensors[name], tensor) for name, tensor in expected.items())
    (tmp_path / "00000002" / "evaluated.safetensors").unlink()
    assert load_evaluated(tmp_path, other) == 1
    assert load_checkpoint(tmp_path, model, optimizer, average=average).step == 1
