"""The kernels are the run's choice: recorded, checked, used in training steps only, and no part of the model."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
from accelerate import Accelerator
from torch import Tensor

from paribus.nn.kernels import fla
from paribus.nn.kernels.choice import Implementation
from paribus.nn.kernels.delta import delta
from paribus.nn.kernels.recurrence import recurrence
from paribus.training import loop
from paribus.training.load import load_run
from paribus.training.loop import train
from paribus.training.model import build_model
from paribus.training.run import Run, with_values
from tests import small


def test_they_are_recorded_and_no_part_of_the_model(text: Path) -> None:
    base = small.run(text, device="cuda", mixer="gla")
    run = with_values(base, {"kernels": "fla"})
    assert Run.from_json(run.to_json()).kernels == "fla"
    assert run.fingerprint() != base.fingerprint()
    assert build_model(run).config.to_dict() == build_model(base).config.to_dict()


@pytest.mark.parametrize(
    ("device", "kernels", "message"),
    [
        ("cpu", "fla", "run: kernels is 'fla', which needs device 'cuda'; device is 'cpu'"),
        ("mps", "fla", "run: kernels is 'fla', which needs device 'cuda'; device is 'mps'"),
        ("cuda", "triton", "run: kernels is 'triton'; allowed: 'torch', 'fla'"),
    ],
)
def test_what_cannot_be_is_refused(text: Path, device: str, kernels: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        small.run(text, device=device, kernels=kernels)
    assert str(caught.value) == message


def test_a_missing_package_leaves_no_folder(
    text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fla, "_missing", ImportError("No module named 'fla'"))
    run = small.run(text)
    monkeypatch.setattr(loop, "make_accelerator", lambda *_: Accelerator(cpu=True))
    wanted = dataclasses.replace(run, device="cuda", kernels="fla")
    with pytest.raises(ValueError, match="needs the package flash-linear-attention"):
        train(wanted, tmp_path / "run", cache)
    assert not (tmp_path / "run").exists()


def test_training_steps_use_them_and_measurements_do_not(
    text: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small.run(text, mixer="gla", steps=4)
    expected = train(run, tmp_path / "torch", cache)
    used: list[int] = []

    def counted(*arguments: Tensor, **options: object) -> tuple[Tensor, Tensor | None]:
        used.append(arguments[0].shape[0])
        return partial(recurrence, algorithm="reference")(*arguments, **options)  # type: ignore[arg-type]

    chosen = Implementation("counted", counted, delta)
    monkeypatch.setattr(loop, "find_kernels", lambda _: chosen)
    found = train(run, tmp_path / "chosen", cache)
    assert used == [run.data.batch_size] * 4, "one layer, four steps, nothing else"
    assert found["scores"]["test"]["bits_per_byte"] == pytest.approx(
        expected["scores"]["test"]["bits_per_byte"], abs=1e-4
    )
    for key in ("flops", "flops_per_token", "state_bytes", "batches_sha256"):
        assert found[key] == expected[key]
    assert load_run(tmp_path / "chosen")[0] == run
