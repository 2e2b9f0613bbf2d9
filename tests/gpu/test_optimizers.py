"""Every optimizer steps on the GPU as on the CPU, and continues there from what was packed."""

from __future__ import annotations

import json

import numpy
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from paribus.optim.optimizer import Optimizer, make_optimizer
from paribus.optim.packing import pack_optimizer, unpack_optimizer
from paribus.optim.registry import OPTIMIZERS
from tests.unit.optim.test_packing import OFTEN
from tests.unit.optim.toy import Toy

pytestmark = pytest.mark.gpu


def make(name: str, device: torch.device) -> tuple[Toy, torch.optim.Optimizer]:
    torch.manual_seed(0)
    numpy.random.seed(0)
    toy = Toy().to(device)
    return toy, make_optimizer(Optimizer(name=name, lr=0.01, settings=OFTEN.get(name, {})), toy)


def step(toy: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    device = next(toy.parameters()).device
    ids = torch.randint(0, 11, (4, 8), generator=torch.Generator().manual_seed(0)).to(device)
    for _ in range(count):
        functional.cross_entropy(toy(ids).flatten(0, 1), (3 * ids.flatten() + 1) % 11).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(toy: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in toy.state_dict().items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_on_the_gpu(name: str, device: torch.device) -> None:
    toy, optimizer = make(name, device)
    step(toy, optimizer, 3)
    assert all(value.isfinite().all() for value in weights(toy).values())
    tensors, facts = pack_optimizer(toy, optimizer)
    packed, said = load(save(tensors)), json.loads(json.dumps(facts, allow_nan=False))
    middle, generators = weights(toy), (torch.get_rng_state(), numpy.random.get_state())
    if device.type == "cuda":
        own = torch.cuda.get_rng_state(device)
    step(toy, optimizer, 3)
    again, other = make(name, device)
    again.load_state_dict(middle)
    unpack_optimizer(again, other, packed, said)
    torch.set_rng_state(generators[0])
    numpy.random.set_state(generators[1])
    if device.type == "cuda":
        torch.cuda.set_rng_state(own, device)
    step(again, other, 3)
    for key, value in weights(toy).items():
        torch.testing.assert_close(weights(again)[key], value, rtol=1e-4, atol=1e-6, msg=key)
