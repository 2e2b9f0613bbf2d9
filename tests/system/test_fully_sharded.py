"""Processes that hold shares of one model: the same numbers as one that holds all of it, in a part of its memory."""

from __future__ import annotations

import os
import re
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from paribus.optim.optimizer import Optimizer, make_optimizer, set_learning_rate
from paribus.optim.packing import optimizer_state_bytes, pack_optimizer, unpack_optimizer
from paribus.optim.registry import OPTIMIZERS
from paribus.optim.shares import SHARED, share_as, whole
from paribus.publish import load_any, load_published, publish_model
from paribus.training.files import read_json
from paribus.training.load import load_run
from paribus.training.loop import train
from paribus.training.model import build_model
from paribus.training.run import Run
from paribus.training.shard import shard
from tests import small
from tests.ranks import join, start_ranks
from tests.system.test_distributed import curve, make_run, many_runs, model_of, train_all, train_until

pytestmark = pytest.mark.slow

EQUAL = ("parameters", "flops_per_token", "optimizer_state_bytes", "state_bytes", "batches_sha256", "epochs")
NUMBERS = ("loss", "gradient_norm")
GLU = {"name": "glu", "expansion": 1.0}
CALM = {"settings": {"eps": 1e-3}}
"""Adam divides gradients that are nothing but rounding by themselves, and rounding grows; not with this."""


def shards_of(runs: list[Run]) -> list[Run]:
    return [replace(run, parallel="shard") for run in runs]


def some_runs(text: Path) -> list[Run]:
    """Attention and a recurrence, and all that reads or changes parameters outside of the optimizer."""
    mixer = {"mixer": {"name": "gla"}, "channel": GLU}
    tied = model_of({"main": mixer}, tie_word_embeddings=True, embedding={"rank": 7})
    pieces = {"accumulation": 2, "z_loss": 1e-3, "ema_decay": 0.9, "gradient_checkpointing": True}
    rows = {"clip_adaptive": 0.05, "clip_scope": "unit", **CALM}
    free = {"name": "schedulefreeadamw", "clip_adaptive": 0.05, "clip_scope": "tensor", **CALM}
    return [
        make_run(text, "attention", optimizer=CALM),
        make_run(text, "tied", model=tied, optimizer=rows, steps=4, **pieces),
        make_run(text, "free", model=model_of({"main": mixer}), optimizer=free, steps=4),
        make_run(text, "bf16", optimizer=CALM, precision="bf16", steps=2),
    ]


def test_two_shares_train_as_one_whole(text: Path, cache: Path, tmp_path: Path) -> None:
    runs, one, two = some_runs(text), tmp_path / "one", tmp_path / "two"
    processes = start_ranks(2, train_all, shards_of(runs), two, cache)
    train_all(runs, one, cache)
    assert join(processes) == [0, 0]
    for run in runs:
        # Gradients through the norm of an output that is nearly zero round more than others.
        tolerances = {"loss": 2e-5, "gradient_norm": 2e-3} if run.precision == "fp32" else dict.fromkeys(NUMBERS, 1e-2)
        folders = one / run.name, two / run.name
        for name, tolerance in tolerances.items():
            expected, found = (curve(folder, name) for folder in folders)
            assert found == pytest.approx(expected, rel=tolerance), f"{run.name}: {name}"
        single, double = (read_json(folder / "result.json") for folder in folders)
        assert double["scores"]["test"]["bits_per_byte"] == pytest.approx(
            single["scores"]["test"]["bits_per_byte"], rel=1e-3
        ), run.name
        assert [double[key] for key in EQUAL] == [single[key] for key in EQUAL], run.name
        ratios = [result["stability"]["update_ratios"] for result in (double, single)]
        assert ratios[0] == pytest.approx(ratios[1], rel=1e-2), run.name

    model, tokenizer = load_any(two / "tied")
    published, _ = load_published(publish_model(model, tokenizer, tmp_path / "published", card={}, name="tied"))
    ids = torch.arange(9)[None]
    assert torch.equal(published(ids).logits, model(ids).logits)
    torch.testing.assert_close(model(ids).logits, load_run(one / "tied")[1](ids).logits, rtol=1e-4, atol=1e-5)


def gradients(runs: list[Run], file: Path) -> None:
    """The gradients of one batch of two rows; each of two processes takes one of them."""
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "-1"))
    ids = torch.randint(256, (2, 8), generator=torch.Generator().manual_seed(0))
    if rank >= 0:
        Accelerator(cpu=True)
        ids = ids[rank, None]
    found: dict[str, dict[str, Tensor | None]] = {}
    for run in runs:
        model = build_model(run).train()
        if rank >= 0:
            shard(model, torch.device("cpu"))
        model(input_ids=ids, targets=ids, return_logits=False).loss.backward()
        found[run.name] = {
            name: None if parameter.grad is None else whole(parameter.grad)
            for name, parameter in model.named_parameters()
        }
    if rank <= 0:
        torch.save(found, file)


def test_every_component_has_the_gradients_of_the_whole_model(text: Path, tmp_path: Path) -> None:
    runs = [run for run in many_runs(text) if run.name in ("mixers", "channels") or run.name.startswith("residual_")]
    processes = start_ranks(2, gradients, runs, tmp_path / "two")
    gradients(runs, tmp_path / "one")
    assert join(processes) == [0, 0]
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    for run in runs:
        assert one[run.name].keys() == two[run.name].keys()
        for name, expected in one[run.name].items():
            found = two[run.name][name]
            if expected is None:
                assert found is None, f"{run.name}: {name}"
                continue
            assert (found - expected).norm() <= 5e-4 * expected.norm() + 1e-7, f"{run.name}: {name}"


def test_killed_and_continued_by_any_number_of_processes(text: Path, cache: Path, tmp_path: Path) -> None:
    """With averaged weights, and dropout whose noise each process draws for itself."""
    block = {"mixer": {"name": "gla"}, "channel": GLU, "dropout": 0.1}
    run = make_run(text, "dropout", model=model_of({"main": block}), optimizer=CALM, ema_decay=0.5)
    split = replace(run, parallel="shard")
    unbroken, again, alone, joined = (tmp_path / name for name in ("unbroken", "again", "alone", "joined"))
    assert join(start_ranks(2, train_until, split, unbroken, cache, 0, "0")) == [0, 0]
    assert join(start_ranks(2, train_until, split, again, cache, 5, "1"))[1] == -signal.SIGKILL
    assert join(start_ranks(2, train_until, split, again, cache, 0, "0")) == [0, 0]
    assert small.journal(again) == small.journal(unbroken)
    assert small.same_weights(again, unbroken)

    join(start_ranks(2, train_until, split, alone, cache, 5, "1"))
    join(start_ranks(2, train_until, run, joined, cache, 5, "1"))
    assert join(start_ranks(2, train, split, joined, cache)) == [0, 0]
    train(run, alone, cache)
    assert read_json(alone / "run.json")["environment"]["processes"] == [2, 1]
    for name in NUMBERS:
        assert curve(alone, name)[:4] == curve(unbroken, name)[:4]
        assert curve(joined, name) == pytest.approx(curve(unbroken, name), rel=2e-3)
    assert len(curve(alone)) == len(curve(unbroken))


def hold(run: Run, folder: Path) -> None:
    """What this process holds of the parameters and of AdamW's moments, before and after training and evaluation."""
    torch.set_num_threads(1)
    Accelerator(cpu=True)
    model = build_model(run).train()
    shard(model, torch.device("cpu"))
    optimizer = make_optimizer(run.optimizer, model)
    ids = torch.zeros(2, 8, dtype=torch.long)
    held = [local(model.parameters())]
    model(input_ids=ids, targets=ids, return_logits=False).loss.backward()
    optimizer.step()
    with torch.no_grad():
        model.eval()(input_ids=ids, targets=ids)
        model.state_bytes(8)
    held += [local(model.parameters())]
    held += [local(state[key] for state in optimizer.state.values()) for key in ("exp_avg", "exp_avg_sq")]
    (folder / os.environ["RANK"]).write_text(repr(held))


def local(tensors: Any) -> int:
    found = list(tensors)
    assert all(isinstance(tensor, DTensor) for tensor in found)
    return sum(tensor.to_local().untyped_storage().nbytes() // tensor.element_size() for tensor in found)


def test_each_process_holds_half(text: Path, tmp_path: Path) -> None:
    run = make_run(text, "half", model=model_of({"main": {"mixer": {"name": "attention"}, "channel": GLU}}))
    assert join(start_ranks(2, hold, run, tmp_path)) == [0, 0]
    numel = sum(parameter.numel() for parameter in build_model(run).parameters())
    for rank in ("0", "1"):
        for held in eval((tmp_path / rank).read_text()):
            assert held == pytest.approx(numel / 2, rel=0.02)


class Parts(nn.Module):
    """A matrix whose rows are odd in number, a convolution, and a table of one row, which leaves a process without."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in {"matrix": (5, 4), "convolution": (6, 1, 3), "row": (1, 4), "vector": (7,)}.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator)))

    def forward(self) -> None:
        raise NotImplementedError


def parts(sharded: bool) -> Parts:
    made = Parts()
    if sharded:
        fully_shard(made, mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    return made


def steps_of(optimizer: torch.optim.Optimizer, model: Parts, steps: range) -> None:
    """Updates by gradients that are the same however the model is held."""
    for step in steps:
        torch.manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = share_as(0.1 * torch.randn(parameter.shape), parameter)
        set_learning_rate(optimizer, 0.02 / (1 + step))
        optimizer.step()


def optimize(names: list[str], folder: Path) -> None:
    """Weights after five steps, and whether a sixth is the same to the bit after a checkpoint."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rank = int(os.environ.get("RANK", "-1"))
    if rank >= 0:
        Accelerator(cpu=True)
    found = {}
    for name in names:
        models = parts(rank >= 0), parts(rank >= 0)
        first, second = (make_optimizer(Optimizer(name), model) for model in models)
        steps_of(first, models[0], range(5))
        weights = [whole(parameter.detach()).clone() for parameter in models[0].parameters()]
        found[name] = {"weights": weights, "bytes": optimizer_state_bytes(first)}
        tensors, facts = pack_optimizer(models[0], first)
        unpack_optimizer(models[1], second, {key: tensor.clone() for key, tensor in tensors.items()}, facts)
        with torch.no_grad():
            for parameter, weight in zip(models[1].parameters(), weights, strict=True):
                parameter.copy_(share_as(weight, parameter))
        for optimizer, model in ((first, models[0]), (second, models[1])):
            steps_of(optimizer, model, range(5, 6))
        pairs = zip(*(model.parameters() for model in models), strict=True)
        found[name]["continued"] = all(torch.equal(whole(a.detach()), whole(b.detach())) for a, b in pairs)
    if rank <= 0:
        torch.save(found, folder)


def test_optimizers_make_of_shares_what_they_make_of_wholes(tmp_path: Path) -> None:
    names = sorted(SHARED)
    processes = start_ranks(2, optimize, names, tmp_path / "two")
    optimize(names, tmp_path / "one")
    assert join(processes) == [0, 0]
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    initial = [parameter.detach() for parameter in Parts().parameters()]
    for name in names:
        assert one[name]["continued"], name
        assert two[name]["continued"], name
        assert one[name]["bytes"] == two[name]["bytes"], name
        for start, expected, found in zip(initial, one[name]["weights"], two[name]["weights"], strict=True):
            assert (expected - start).abs().max() > 0, name
            assert (found - expected).abs().max() <= 1e-4 * (expected - start).abs().max(), name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(
            ({"optimizer": {"name": name}}, f"optimizer '{name}' needs whole tensors")
            for name in sorted(OPTIMIZERS.keys() - SHARED)
        ),
        ({"precision": "fp16", "device": "cuda"}, "needs precision 'fp32' or 'bf16'; precision is 'fp16'"),
        ({"device": "mps"}, "needs device 'cpu' or 'cuda'; device is 'mps'"),
        ({"compile": True}, "needs compile false; compile is true"),
    ],
)
def test_what_needs_a_whole_model_is_refused(
    text: Path, cache: Path, tmp_path: Path, values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paribus.training.setup._check_compiler", lambda device: None)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        train(small.run(text, parallel="shard", **values), tmp_path / "run", cache)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_one_process_has_the_only_share(text: Path, cache: Path, tmp_path: Path) -> None:
    run = small.run(text, steps=3)
    for name, parallel in (("whole", "replicate"), ("share", "shard")):
        train(replace(run, parallel=parallel), tmp_path / name, cache)
    assert small.journal(tmp_path / "whole") == small.journal(tmp_path / "share")
    assert small.same_weights(tmp_path / "whole", tmp_path / "share")
