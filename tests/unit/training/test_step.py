"""One update: pieces that add up to the whole batch, what is clipped, what overflows in fp16, what is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional

from paribus.data.batches import Batch
from paribus.nn.backbone import ParibusModel
from paribus.optim.clipping import clip_adaptively
from paribus.training import loop, setup
from paribus.training.journal import JOURNAL, read_journal
from paribus.training.loop import train
from paribus.training.run import Run, with_values
from paribus.training.step import forward_and_backward, update
from paribus.training.task import make_task
from paribus.training.trainer import Trainer
from tests import small


def trainer_of(run: Run, folder: Path, cache: Path) -> Trainer:
    """What `train` would begin with."""
    task = make_task(run)
    return setup.set_up(task, setup.make_accelerator(run, (), folder), None, task.batches(cache), folder)


def uneven(batch_size: int = 4, length: int = 9) -> Batch:
    """A batch whose rows have different numbers of targets: padding left and right, and two documents in a row."""
    segments = torch.ones(batch_size, length, dtype=torch.long)
    segments[0, 2:] = 0
    segments[1, :4] = 0
    segments[2, 5:] = 2
    return Batch(torch.randint(256, (batch_size, length)), segments, {"text": batch_size})


def gradients(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in trainer.model.parameters()]


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_pieces_add_up_to_the_mean_over_all_targets(text: Path, cache: Path, tmp_path: Path, pieces: int) -> None:
    run = with_values(
        small.run(text), {"data.batch_size": 4, "accumulation": pieces, "z_loss": 0.01, "optimizer.weight_decay": 0.0}
    )
    trainer, batch = trainer_of(run, tmp_path, cache), uneven()
    trainer.model.double()
    losses = forward_and_backward(trainer, trainer.task.inputs(batch, 0))
    found = gradients(trainer)
    trainer.model.zero_grad()
    assert batch.segments is not None
    logits = trainer.model(input_ids=batch.tokens[:, :-1], attention_mask=batch.segments[:, :-1]).logits
    counted = (batch.segments[:, :-1] > 0) & (batch.segments[:, 1:] > 0)
    assert counted.sum() == 1 + 4 + 8 + 8
    cross_entropy = functional.cross_entropy(logits[counted], batch.tokens[:, 1:][counted])
    z_loss = 0.01 * logits[counted].logsumexp(-1).square().mean()
    (cross_entropy + z_loss).backward()
    assert losses.keys() == {"cross_entropy", "z_loss"}
    assert losses["cross_entropy"].item() == pytest.approx(cross_entropy.item(), abs=1e-12)
    assert losses["z_loss"].item() == pytest.approx(z_loss.item(), abs=1e-12)
    for one, other in zip(found, gradients(trainer), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_row_of_padding_counts_nothing(text: Path, cache: Path, tmp_path: Path) -> None:
    run = with_values(small.run(text), {"data.batch_size": 4, "accumulation": 4})
    trainer, batch = trainer_of(run, tmp_path, cache), uneven()
    assert batch.segments is not None
    batch.segments[3] = 0
    change = update(trainer, trainer.task.inputs(batch, 0))
    alone = Batch(batch.tokens[:3], batch.segments[:3], batch.counts)
    run = with_values(run, {"data.batch_size": 3, "accumulation": 1})
    fewer = trainer_of(run, tmp_path, cache)
    assert update(fewer, fewer.task.inputs(alone, 0)).loss == pytest.approx(change.loss, abs=1e-6)


def test_the_journal_tells_the_parts_of_the_loss(text: Path, cache: Path, tmp_path: Path) -> None:
    run = with_values(small.run(text, steps=2), {"z_loss": 0.1, "model.blocks.main.channel.name": "mixture_of_experts"})
    result = train(run, tmp_path / "parts", cache)
    event = read_journal(tmp_path / "parts" / JOURNAL)[0]
    assert event["losses"].keys() >= {"cross_entropy", "z_loss"} and len(event["losses"]) > 2
    assert event["loss"] == event["losses"]["cross_entropy"]
    assert result["optimizer_state_bytes"] >= 8 * result["parameters"]
    train(small.run(text, steps=2), tmp_path / "one", cache)
    assert "losses" not in read_journal(tmp_path / "one" / JOURNAL)[0]


def test_adaptive_clipping_comes_before_the_global_norm(text: Path, cache: Path, tmp_path: Path) -> None:
    values = {"optimizer.name": "sgd", "optimizer.clip_adaptive": 0.01, "optimizer.clip_norm": 0.02}
    run = with_values(
        small.run(text), {**values, "optimizer.weight_decay": 0.0, "optimizer.settings": {"momentum": 0.0}}
    )
    trainer = trainer_of(run, tmp_path, cache)
    trainer.total_steps = 20
    batch = trainer.batches.batch(0)
    forward_and_backward(trainer, trainer.task.inputs(batch, 0))
    parameters = list(trainer.model.parameters())
    norm = torch.stack([parameter.grad.norm() for parameter in parameters]).norm().item()
    clip_adaptively(parameters, 0.01, "tensor")
    clipped = torch.nn.utils.clip_grad_norm_(parameters, 0.02)
    assert 0.02 < clipped < norm, "both do something"
    expected = gradients(trainer)
    trainer.optimizer.zero_grad()
    before = [parameter.detach().clone() for parameter in parameters]
    change = update(trainer, trainer.task.inputs(batch, 0))
    assert change.gradient_norm == pytest.approx(norm, rel=1e-5), "it is the norm before any clipping"
    for old, parameter, gradient in zip(before, parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), old - change.lr * gradient, rtol=1e-5, atol=1e-7)


def fp16_on_the_cpu(run: Run, scale: float, backoff: float = 0.25) -> Accelerator:
    """The engine as it is in fp16 on a GPU: autocast left out, the scale of the loss kept."""
    accelerator = setup.make_accelerator(with_values(run, {"precision": "fp32"}), (), Path("unused"))
    accelerator.state._mixed_precision = "fp16"
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=backoff)
    return accelerator


def test_steps_that_overflow_are_skipped_and_counted(
    text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "check_engine", lambda run: None)
    monkeypatch.setattr(loop, "make_accelerator", lambda run, *_: fp16_on_the_cpu(run, 2.0**80, 2.0**-10))
    run = small.run(text, steps=12, precision="fp16")
    result = train(run, tmp_path, cache)
    skipped = result["stability"]["skipped_steps"]
    assert (result["status"], result["divergence"]) == ("finished", None)
    assert 1 <= skipped < 12
    norms = [event["gradient_norm"] for event in read_journal(tmp_path / JOURNAL) if event["event"] == "train"]
    assert norms == [None] * skipped + [norm for norm in norms if norm is not None]
    assert 0 < result["stability"]["max_gradient_norm"] == max(norms[skipped:])


def test_a_gradient_that_no_scale_helps_diverges(
    text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "check_engine", lambda run: None)
    monkeypatch.setattr(loop, "make_accelerator", lambda run, *_: fp16_on_the_cpu(run, 4.0))
    build = setup.build_model

    def with_an_endless_gradient(run: Run) -> Any:
        model = build(run)
        model.head.weight.register_hook(lambda gradient: gradient * torch.inf)
        return model

    monkeypatch.setattr(setup, "build_model", with_an_endless_gradient)
    result = train(small.run(text, steps=12, precision="fp16"), tmp_path, cache)
    assert result["status"] == "diverged"
    assert result["divergence"].startswith("gradient norm is ")
    assert result["step"] == result["stability"]["first_not_finite_step"] == 2, (
        "the scale was 4, then 1, then a quarter"
    )
    assert result["stability"]["skipped_steps"] == 1


def test_fp16_needs_a_device_that_has_it(text: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision is 'fp16', which needs device 'cuda' or 'mps'"):
        train(small.run(text, precision="fp16"), tmp_path / "run", cache)
    assert not (tmp_path / "run").exists()


def test_a_missing_compiler_is_told_before_there_is_a_folder(
    text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="'no-such-compiler' is not found"):
        train(small.run(text, compile=True), tmp_path / "run", cache)
    monkeypatch.setattr(setup, "_COMPILER", (99, 1))
    with pytest.raises(ValueError, match=r"compile is true, which needs torch 99.1 or newer; 2\.\d+\..* is installed"):
        train(small.run(text, compile=True), tmp_path / "run", cache)
    assert not (tmp_path / "run").exists()


OF_TORCH = pytest.mark.filterwarnings("ignore")
"""The compiler warns of its own inner calls; as errors, the warnings would end the compilation."""


def compiled_and_eager(run: Run, tmp_path: Path, cache: Path) -> None:
    """Train twice; curves agree to rounding, and what is measured is never compiled."""
    train(run, tmp_path / "eager", cache)
    torch._dynamo.reset()
    train(with_values(run, {"compile": True}), tmp_path / "compiled", cache)
    compiled, eager = (read_journal(tmp_path / name / JOURNAL) for name in ("compiled", "eager"))
    for one, other in zip(compiled, eager, strict=True):
        for key in {"loss", "gradient_norm", "score", "activation_rms"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-4)
    assert any("activation_rms" in event for event in compiled)


@OF_TORCH
def test_a_compiled_model_trains_as_the_eager_one(
    text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all of the compiler but its last stage, which writes C++."""
    compiled: list[ParibusModel] = []

    def compile_without_cpp(self: ParibusModel, **options: Any) -> None:
        compiled.append(self)
        nn.Module.compile(self, backend="eager", **options)

    monkeypatch.setattr(ParibusModel, "compile", compile_without_cpp)
    compiled_and_eager(small.run(text, steps=4), tmp_path, cache)
    assert len(compiled) == 1


@OF_TORCH
@pytest.mark.long
@pytest.mark.parametrize("mixer", ["attention", "gla"])
def test_a_model_in_cpp_trains_as_the_eager_one(mixer: str, text: Path, cache: Path, tmp_path: Path) -> None:
    compiled_and_eager(small.run(text, mixer=mixer, steps=4), tmp_path, cache)
