"""What the journal and the result say of stability, against what is computed by hand."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest
import torch

from paribus.optim.roles import parameter_roles
from paribus.training import loop, setup
from paribus.training.journal import JOURNAL, read_journal
from paribus.training.loop import train
from paribus.training.run import with_values
from paribus.training.stability import DEVIATIONS, LEAST, WINDOW, Observer, Stability, is_spike
from paribus.training.step import update
from paribus.training.task import make_task
from tests import small


def recorded(losses: list[float]) -> Stability:
    stability = Stability()
    for step, loss in enumerate(losses, start=1):
        stability.record(step, loss, 1.0, False, {})
    return stability


def noise(count: int) -> list[float]:
    draw = random.Random(0)
    return [3 + draw.gauss(0, 0.1) for _ in range(count)]


def test_a_spike_is_where_the_loss_leaves_its_past() -> None:
    losses = noise(300)
    assert recorded(losses).spikes == []
    losses[149] = 5.0  # step 150
    losses[200:204] = [6.0, 6.5, 5.0, 4.5]
    assert recorded(losses).spikes == [150, 201], "a spike of several steps is one"


def test_the_bound_is_mean_and_deviations_of_the_window() -> None:
    before = noise(WINDOW)
    bound = statistics.fmean(before) + DEVIATIONS * statistics.pstdev(before)
    assert is_spike(bound + 1e-6, before) and not is_spike(bound - 1e-6, before)
    assert not is_spike(100.0, before[: LEAST - 1]), "too few to say"
    assert len(recorded(noise(WINDOW + 50)).losses) == WINDOW


def test_only_the_past_decides() -> None:
    losses = noise(200)
    losses[150] = 9.0
    assert recorded(losses[:151]).spikes == recorded(losses).spikes == [151]


def test_what_was_recorded_continues_from_json() -> None:
    losses = noise(100)
    losses[80:83] = [9.0] * 3
    whole = recorded(losses)
    half = Stability(**recorded(losses[:81]).to_json())
    for step in range(82, 101):
        half.record(step, losses[step - 1], 1.0, False, {})
    assert half == whole and half.spikes == [81]


@pytest.mark.parametrize("values", [{}, {"accumulation": 2}, {"gradient_checkpointing": True}])
def test_the_observer_sees_what_happens(text: Path, cache: Path, tmp_path: Path, values: dict[str, object]) -> None:
    run = with_values(small.run(text), {"model.num_hidden_layers": 3, **values})
    task = make_task(run)
    trainer = setup.set_up(task, setup.make_accelerator(run, (), tmp_path), None, task.batches(cache), tmp_path)
    trainer.total_steps = 10
    model, batch = trainer.bare_model, trainer.batches.batch(0)
    streams: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda *seen: streams.append(seen[2][0])) for block in model.model.blocks]
    with torch.no_grad():
        model(input_ids=batch.tokens[:, :-1])
    for hook in hooks:
        hook.remove()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    observed = update(trainer, task.inputs(batch, 0), observe=True).observed
    rms = [stream.double().square().mean().sqrt().item() for stream in streams]
    assert observed["activation_rms"] == pytest.approx(rms, rel=1e-5)
    assert observed["activation_max"] == pytest.approx([stream.abs().max().item() for stream in streams], rel=1e-5)
    roles = parameter_roles(model)
    for role, ratio in observed["update_ratios"].items():
        names = [name for name in before if roles[name] == role]
        after = dict(model.named_parameters())
        moved = sum((after[name].detach() - before[name]).double().square().sum().item() for name in names) ** 0.5
        length = sum(before[name].double().square().sum().item() for name in names) ** 0.5
        assert ratio == pytest.approx(moved / length, rel=1e-5) and ratio > 0
    assert observed["update_ratios"].keys() == set(roles.values())
    assert update(trainer, task.inputs(batch, 0)).observed == {}


def test_numbers_that_overflow_are_none(text: Path, cache: Path, tmp_path: Path) -> None:
    run = with_values(small.run(text, steps=1), {"optimizer.lr": 1e30, "optimizer.weight_decay": 1e10})
    result = train(with_values(run, {"evaluation.points": 0}), tmp_path, cache)
    assert None in read_journal(tmp_path / JOURNAL)[0]["update_ratios"].values()
    assert result["stability"]["first_not_finite_step"] == 1
    observer = Observer(setup.build_model(small.run(text)))
    observer.wanted = True
    observer._see(0, torch.nn.Identity(), (), (torch.full((2, 3), 1e30), None))
    observer._see(0, torch.nn.Identity(), (), (torch.zeros(2, 3), None))
    observer.keep_weights()
    facts = observer.facts()
    assert facts["activation_rms"] == [pytest.approx(1e30 / 2**0.5)] and facts["activation_max"] == [
        pytest.approx(1e30)
    ]


def test_journal_and_result(text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOGGED_STEPS", 6)
    result = train(small.run(text, steps=21), tmp_path, cache)
    events = [event for event in read_journal(tmp_path / JOURNAL) if event["event"] == "train"]
    assert [event["step"] for event in events] == [3, 6, 9, 12, 15, 18, 21], "looked at on logged steps"
    stability = result["stability"]
    assert stability["update_ratios"] == events[-1]["update_ratios"]
    for key in ("activation_rms", "activation_max"):
        assert stability[key]["last"] == events[-1][key]
        assert stability[key]["max"] == [max(event[key][0] for event in events)]
    assert stability["max_gradient_norm"] >= max(event["gradient_norm"] for event in events)
    assert (stability["spikes"], stability["skipped_steps"], stability["first_not_finite_step"]) == ([], 0, None)
