"""Every benchmark runs at the smallest sizes and leaves whole rows; how fast anything is, is no test's business."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from paribus.benchmarks import memory, record, whole
from paribus.benchmarks.command import BENCHMARKS
from paribus.benchmarks.kernels import CASES, WITHOUT_REFERENCE, saved_bytes
from paribus.benchmarks.timing import interleaved, ratios
from paribus.cli import main
from paribus.nn.backbone import parameter_count
from paribus.studies.equalizers import TOLERANCE

SMALL = ["--lengths", "16", "--tokens", "16", "--rounds", "2"]
SIZES = ["--width", "32", "--layers", "1"]


def rows(results: Path, name: str) -> list[dict[str, str]]:
    with (results / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run(results: Path, *arguments: str) -> list[dict[str, str]]:
    assert main(["bench", *arguments, "--results", str(results)]) == 0
    return rows(results, arguments[0])


def test_kernels(tmp_path: Path) -> None:
    found = run(tmp_path, "kernels", *SMALL)
    assert [row["kernel"] for row in found] == ["sdpa", *CASES]
    assert {row["kernel"] for row in found if not row["ratio_to_reference"]} == {"sdpa", *WITHOUT_REFERENCE}
    assert [row["kernel"] for row in found if row["ratio_to_loop"]] == ["scan"]
    assert all(float(row["ratio_to_sdpa_median"]) > 0 and row["torch"] and row["bf16_instructions"] for row in found)


@pytest.mark.parametrize("name", CASES)
def test_kernel_cases_differentiate_all_that_they_name(name: str) -> None:
    forward, leaves = CASES[name](2, 8)
    output = forward()
    assert output.shape[:2] == (2, 8)
    assert all(g is not None for g in torch.autograd.grad(output.sum(), leaves, allow_unused=True))


def test_saved_bytes_leaves_inputs_out() -> None:
    x, weight = torch.randn(10, requires_grad=True), torch.randn(10, requires_grad=True)
    assert saved_bytes(lambda: x * weight, [x, weight]) == 0
    assert saved_bytes(lambda: (x.exp() * weight).sin(), [x, weight]) == 2 * 4 * 10


def test_models(tmp_path: Path) -> None:
    found = run(tmp_path, "models", *SMALL, *SIZES, "--mixers", "gla", "gla:simple")
    pairs = [(row["model"], row["base"]) for row in found]
    expected = [("llama", "attention"), ("gla", "attention"), ("gla:simple", "attention")]
    assert pairs == [*expected, ("attention", "llama"), ("gla", "llama"), ("gla:simple", "llama")]
    for row in found:
        count, base = int(row["parameters"]), int(row["base_parameters"])
        assert abs(count - base) <= TOLERANCE * base


def test_models_beside_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def twin(shape: whole.Shape) -> torch.nn.Module:
        return whole.ours(whole.Shape(shape.width, shape.layers, 1), 16, "gla")

    def absent(shape: whole.Shape) -> torch.nn.Module:
        raise ValueError("not installed")

    peers = (whole.Peer("gla", "twin", twin, whole.ours_loss), whole.Peer("rg_lru", "other", absent))
    monkeypatch.setattr("paribus.benchmarks.models.PEERS", peers)
    found = run(tmp_path, "models", *SMALL, *SIZES, "--mixers", "gla", "rg_lru")
    assert [(row["model"], row["base"]) for row in found][-1] == ("gla", "twin")
    assert "no row for rg_lru beside other: not installed" in capsys.readouterr().out
    big = whole.Peer("gla", "big", lambda shape: torch.nn.Linear(999, 999))
    with pytest.raises(ValueError, match="not comparable"):
        whole.beside_peer(big, whole.default_shape(32, 1), 16)


def test_a_peer_of_our_size_learns_from_the_same_targets() -> None:
    _, model = whole.beside_peer(whole.PEERS[0], whole.default_shape(256, 1), 16)
    inputs, targets = whole.batch(16, 16)
    whole.logits_loss(model, inputs, targets).backward()
    assert parameter_count(model) > 0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_decoding(tmp_path: Path) -> None:
    found = run(
        tmp_path, "decoding", "--lengths", "16", "32", *SIZES, "--rounds", "1", "--steps", "2", "--mixers", "gla"
    )
    sizes = {(row["mixer"], int(row["length"])): int(row["state_bytes"]) for row in found}
    assert sizes["gla", 16] == sizes["gla", 32]
    assert sizes["attention", 16] < sizes["attention", 32]


def test_precision_and_training_speed(tmp_path: Path) -> None:
    found = run(tmp_path, "precision", *SMALL, *SIZES, "--mixers", "gla")
    assert [row["mixer"] for row in found] == ["attention", "gla"]
    found = run(tmp_path, "training_speed", *SMALL, "--shapes", "demo")
    assert [row["model"] for row in found] == ["llama", "attention"]


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        way, mixer, *sizes = command[3:]
        found = memory.measure(way, mixer, *map(int, sizes[:-1]))
        found["bytes"] += 1  # so small a step may find all its memory already there
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps(found))

    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(run=here))
    sizes = ["--depths", "1", "2", "--width", "32", "--length", "16", "--tokens", "16", "--rounds", "1"]
    found = run(tmp_path, "memory", *sizes)
    assert [(row["layers"], row["way"]) for row in found] == [(depth, way) for depth in "12" for way in memory.WAYS]
    assert all(int(row["parameters"]) > 0 and float(row["milliseconds_median"]) > 0 for row in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernels", "--kernels", "scn"], "unknown kernel 'scn'; did you mean 'scan'?"),
        (["memory", "--mixer", "glaa"], "unknown mixer 'glaa'; did you mean 'gla'?"),
        (["models", *SMALL, "--mixers", "glaa"], "unknown mixer 'glaa'; did you mean 'gla'?"),
        (["decoding", "--lengths", "16", "--mixers", "gla:x"], "unknown preset 'x' of 'gla'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_without_a_name_all_run(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, dict[str, Any]]] = []
    for name in BENCHMARKS:

        def noted(name: str = name, **options: Any) -> None:
            called.append((name, options))

        monkeypatch.setattr(f"paribus.benchmarks.{name}.bench", noted)
    assert main(["bench"]) == 0
    assert [name for name, _ in called] == list(BENCHMARKS)
    assert all(options["rounds"] == 7 and options["threads"] == 1 for _, options in called)


def test_rounds_are_interleaved_and_alternate() -> None:
    order: list[str] = []

    def step(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    found = interleaved({"a": lambda: step("a", 1.0), "b": lambda: step("b", 2.0)}, 2)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert found == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_ratios_are_of_rounds() -> None:
    found = ratios([1.0, 2.0, 1.0], [2.0, 2.0, 4.0], "x")
    assert found == {"ratio_to_x": 2.0, "ratio_quartile_1": 1.0, "ratio_quartile_3": 4.0, "rounds": 3}
    assert ratios([1.0], [3.0], "x")["ratio_quartile_1"] == 3.0


def test_rows_are_added_and_new_columns_are_empty_in_older_ones(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,date\n1,long ago\n")
    record.append_rows(tmp_path, "x", [{"a": 2, "b": 3}])
    old, new = rows(tmp_path, "x")
    assert (old["a"], old["date"], old["b"], old["torch"]) == ("1", "long ago", "", "")
    assert (new["a"], new["b"], new["torch"]) == ("2", "3", torch.__version__)
    assert not list(tmp_path.glob(".*")), "written whole"
