"""Every optimizer on offer continues from what was packed as if it had never stopped, to the bit."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from paribus.optim.optimizer import Optimizer
from paribus.optim.packing import optimizer_state_bytes, pack_optimizer, unpack_optimizer
from paribus.optim.registry import OPTIMIZERS
from tests.unit.optim.toy import Toy, make, train

LR = 0.01
OFTEN: dict[str, dict[str, Any]] = {
    "ademamix": {"t_alpha_beta3": 4},
    "adagc": {"warmup_steps": 2},
    "alice": {"update_interval": 2, "rank": 2, "leading_basis": 1},
    "conda": {"update_proj_gap": 2},
    "dash": {"precondition_frequency": 2, "block_size": 4},
    "laprop": {"centered": True, "steps_before_using_centered": 2},
    "muon": {"nesterov": False},
    "nadam": {"momentum_decay": 0.1},
    "ranger": {"k": 2},
    "rmsprop": {"centered": True, "momentum": 0.9},
    "scalableshampoo": {
        "shape_interpretation": False,
        "start_preconditioning_step": 2,
        "preconditioning_compute_steps": 2,
        "block_size": 4,
    },
    "shampoo": {"momentum": 0.9, "preconditioning_compute_steps": 2},
    "soap": {"precondition_frequency": 2},
    "splus": {"inverse_steps": 2},
    "stablespam": {"update_proj_gap": 2, "t_max": 4},
}
"""Settings under which what happens rarely happens within six steps."""


def through_files(toy: Toy, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What was packed, as it comes back from safetensors and JSON."""
    tensors, facts = pack_optimizer(toy, optimizer)
    return load(save(tensors)), json.loads(json.dumps(facts, allow_nan=False))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_steps_and_three_are_six(name: str) -> None:
    settings = Optimizer(name=name, lr=LR, settings=OFTEN.get(name, {}))
    numpy.random.seed(0)
    toy, optimizer = make(settings)
    train(toy, optimizer, LR, range(3))
    tensors, facts = through_files(toy, optimizer)
    weights = {key: value.clone() for key, value in toy.state_dict().items()}
    generator = torch.get_rng_state()
    expected_losses = train(toy, optimizer, LR, range(3, 6))

    numpy.random.seed(1)
    again, other = make(settings, seed=1)
    again.load_state_dict(weights)
    unpack_optimizer(again, other, tensors, facts)
    torch.set_rng_state(generator)
    assert train(again, other, LR, range(3, 6)) == expected_losses
    for key, expected in toy.state_dict().items():
        assert torch.equal(again.state_dict()[key], expected), key
    ours, theirs = through_files(toy, optimizer), through_files(again, other)
    assert ours[1] == theirs[1]
    assert ours[0].keys() == theirs[0].keys()
    for key, tensor in ours[0].items():
        assert tensor.dtype == theirs[0][key].dtype
        assert torch.equal(tensor, theirs[0][key])


def restored(value: Any) -> Any:
    """One thing that an optimizer might keep, packed and unpacked."""
    toy, optimizer = make(Optimizer())
    optimizer.state[toy.head.weight]["kept"] = value
    tensors, facts = through_files(toy, optimizer)
    _, other = again = make(Optimizer())
    unpack_optimizer(again[0], other, tensors, facts)
    return other.state[again[0].head.weight]["kept"]


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.1, float("inf"), -float("inf"), "text", (1, [2, None]), {"a": {1: (2.5,)}, (0, 1): []}],
    ids=str,
)
def test_plain_values(value: Any) -> None:
    found = restored(value)
    assert found == value
    assert type(found) is type(value)


def test_other_values() -> None:
    assert restored(float("nan")) != restored(float("nan"))
    queue = restored(deque([1, 2], maxlen=2))
    queue.append(3)
    assert queue == deque([2, 3], maxlen=2)
    with pytest.raises(TypeError, match="keeps a set, which a checkpoint cannot hold"):
        restored({1})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8], ids=str)
def test_tensors_keep_type_and_place_in_memory(dtype: torch.dtype) -> None:
    tensor = (torch.arange(24).reshape(2, 3, 4) % 3).to(dtype).permute(2, 0, 1)
    found = restored(tensor)
    assert found.dtype == dtype
    assert found.stride() == tensor.stride() == (1, 12, 4)
    assert torch.equal(found, tensor)


def test_a_tensor_kept_twice_stays_one() -> None:
    tensor = torch.ones(2)
    first, second = restored([tensor, tensor])
    assert first is second


def test_objects_of_the_library_only() -> None:
    toy, optimizer = make(Optimizer())
    tensors, facts = through_files(toy, optimizer)
    facts["shared"] = {"object": "subprocess:Popen", "holds": {"mapping": []}}
    with pytest.raises(ValueError, match="an object of subprocess; only pytorch_optimizer"):
        unpack_optimizer(toy, optimizer, tensors, facts)


def test_of_another_model_or_optimizer() -> None:
    toy, optimizer = make(Optimizer())
    train(toy, optimizer, LR, range(1))
    tensors, facts = through_files(toy, optimizer)
    with pytest.raises(ValueError, match="its checkpoint has parameter 'head"):
        unpack_optimizer(toy.model, optimizer, tensors, facts)
    facts["groups"].pop()
    with pytest.raises(ValueError, match="its checkpoint has 4 groups"):
        unpack_optimizer(toy, optimizer, tensors, facts)


def test_bytes() -> None:
    toy, optimizer = make(Optimizer(name="adamw"))
    assert optimizer_state_bytes(optimizer) == 0
    train(toy, optimizer, LR, range(1))
    trained = [parameter for name, parameter in toy.named_parameters() if "log_rate" not in name]
    assert optimizer_state_bytes(optimizer) == sum(4 * (2 * parameter.numel() + 1) for parameter in trained)


def test_bytes_inside_objects() -> None:
    toy, optimizer = make(Optimizer(name="scalableshampoo", settings=OFTEN["scalableshampoo"]))
    train(toy, optimizer, LR, range(1))
    momenta = sum(tensor.nbytes for state in optimizer.state.values() for tensor in (state["momentum"],))
    blocks = 4 * (3 * 4 * 4 + 3 * 4 * 4 + 3 * 3)
    assert optimizer_state_bytes(optimizer) > 2 * momenta + blocks, "the statistics of blocks lie in an object"
