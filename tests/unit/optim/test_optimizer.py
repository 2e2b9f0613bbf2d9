"""Every optimizer on offer trains, and follows learning rates and weight decay; AdamW is torch's own, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor

from paribus.optim import registry
from paribus.optim.optimizer import Optimizer, Role, make_optimizer, set_learning_rate
from paribus.optim.registry import OPTIMIZERS
from paribus.optim.roles import ROLES
from tests.unit.optim.toy import Toy, make, train

LEARNING_RATES = {
    **dict.fromkeys(["adadelta", "adamg", "adamod", "lars", "prodigy", "schedulefreesgd"], 1.0),
    **dict.fromkeys(["adai", "padam", "pid", "pnm", "qhm", "sgd", "sgdp", "sgdw", "shampoo", "splus", "tam"], 0.1),
    **dict.fromkeys(["accsgd", "avagrad", "racs", "ranger", "schedulefreeradam", "vsgd"], 0.1),
    **dict.fromkeys(["came", "kate"], 0.001),
}
"""Of those that want another than 0.01."""


def learning_rate(name: str) -> float:
    return LEARNING_RATES.get(name, 0.01)


def now(toy: Toy) -> list[Tensor]:
    """The embedding, the head and a vector as they are now."""
    parameters = dict(toy.named_parameters())
    names = ("model.embedding.table.weight", "head.weight", "model.norm.weight")
    return [parameters[name].detach().clone() for name in names]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_learns_and_obeys(name: str) -> None:
    """The loss falls. Beside that run, roles at a quarter of the rate move less, a decayed embedding ends shorter."""
    lr = learning_rate(name)
    toy, optimizer = make(Optimizer(name=name, lr=lr, weight_decay=0.0))
    _, *start = now(toy)
    losses = train(toy, optimizer, lr, range(8))
    embedding, *plain = now(toy)
    losses += train(toy, optimizer, lr, range(8, 20))
    assert losses[-1] < losses[0] - 0.05
    assert all(parameter.isfinite().all() for parameter in toy.parameters())

    slow = Role(lr=1.0 if OPTIMIZERS[name].one_lr else 0.25)
    roles = {"embedding": Role(weight_decay=0.5), "head": slow, "vector": slow}
    toy, optimizer = make(Optimizer(name=name, lr=lr, weight_decay=0.0, roles=roles))
    train(toy, optimizer, lr, range(8))
    shorter, *nearer = now(toy)
    assert shorter.norm() < embedding.norm()
    for before, far, near in zip(start, plain, nearer, strict=True):
        assert OPTIMIZERS[name].one_lr or 0 < (near - before).norm() < 0.85 * (far - before).norm()


def test_adamw_is_torch_s() -> None:
    toy, optimizer = make(Optimizer(lr=0.01, weight_decay=0.5, settings={"betas": [0.8, 0.9], "eps": 1e-6}))
    other, _ = make(Optimizer())
    parameters = dict(other.named_parameters())
    decayed = {name for name in parameters if name.endswith(("up.weight", "output.weight", "convolution", "stack"))}
    decayed.add("head.weight")
    reference = torch.optim.AdamW(
        [
            {"params": [parameters[name] for name in parameters if name in decayed], "weight_decay": 0.5},
            {"params": [parameters[name] for name in parameters if name not in decayed], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.8, 0.9),
        eps=1e-6,
        foreach=False,
    )
    for _ in range(5):
        for name, parameter in toy.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            parameters[name].grad = parameter.grad.clone()
        optimizer.step()
        reference.step()
    for name, parameter in toy.named_parameters():
        torch.testing.assert_close(parameter, parameters[name])


def test_muon_is_for_matrices_and_adamw_for_the_rest() -> None:
    settings = Optimizer(name="muon", lr=0.01, weight_decay=0.1)
    toy, optimizer = make(settings)
    other, adamw = make(Optimizer(lr=0.01, weight_decay=0.1, settings={"eps": 1e-10}))
    before = toy.model["blocks"][0]["mixer"].up.weight.detach().clone()  # type: ignore[index]
    train(toy, optimizer, 0.01, range(1))
    train(other, adamw, 0.01, range(1))
    for name, parameter in toy.named_parameters():
        matrix = name.endswith(("up.weight", "output.weight", "convolution", "stack"))
        assert torch.allclose(parameter, dict(other.named_parameters())[name], atol=1e-6) != matrix, name
    update = (before * (1 - 0.01 * 0.1) - toy.model["blocks"][0]["mixer"].up.weight.detach()) / 0.01  # type: ignore[index]
    singular = torch.linalg.svdvals(update) / (0.2 * 8**0.5)  # the factor for a matrix of 8 × 6
    assert singular.min() > 0.5
    assert singular.max() < 1.3


def test_groups() -> None:
    _, optimizer = make(Optimizer(lr=0.1, weight_decay=0.3, roles={"gate": Role(lr=0.5, weight_decay=0.2)}))
    assert [group["role"] for group in optimizer.param_groups] == list(ROLES)
    assert [group["lr_factor"] for group in optimizer.param_groups] == [1.0, 1.0, 1.0, 1.0, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.3, 0.0, 0.3, 0.2]
    set_learning_rate(optimizer, 0.02)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.02, 0.02, 0.02, 0.01]


def test_frozen_parameters_are_left_out() -> None:
    toy = Toy()
    toy.head.requires_grad_(False)
    groups = make_optimizer(Optimizer(), toy).param_groups
    assert "head" not in [group["role"] for group in groups]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_says_what_it_is(name: str) -> None:
    summary = OPTIMIZERS[name].summary
    assert summary.endswith(")")
    assert len(summary) < 120


def test_what_the_library_has_is_offered_or_refused() -> None:
    table = [line.strip().split("  ")[0] for line in (registry.__doc__ or "").splitlines() if line.startswith("    ")]
    refused = {name for names in table for name in names.split()}
    assert set(pytorch_optimizer.get_supported_optimizers()) - set(OPTIMIZERS) <= refused
    assert not refused & set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adamvw"}, r"optimizer: unknown name 'adamvw'; did you mean 'adamw'\?"),
        ({"settings": {"beta": 1}}, r"optimizer 'adamw': unknown setting 'beta'; did you mean 'betas'\?"),
        ({"settings": {"lr": 1}}, "optimizer 'adamw': unknown setting 'lr'; known: amsgrad, betas"),
        ({"settings": {"weight_decay": 1}}, "unknown setting 'weight_decay'"),
        ({"settings": {"betas": [0.9, 1.5]}}, r"optimizer 'adamw': settings \{'betas': .*Invalid beta parameter"),
        ({"settings": {"betas": 3}}, r"optimizer 'adamw': settings \{'betas': 3\}"),
        ({"name": "lion", "settings": {"beta": 1}}, r"optimizer 'lion': unknown setting 'beta'; did you mean"),
        ({"roles": {"heads": Role()}}, r"unknown role 'heads'; did you mean 'head'\?"),
        ({"name": "prodigy", "roles": {"head": Role(lr=0.1)}}, "roles: head: lr is 0.1; 'prodigy' has one for all"),
        ({"lr": -1.0}, "lr is -1.0; a number that is not negative"),
        ({"clip_adaptive": float("inf")}, "clip_adaptive is inf"),
    ],
    ids=str,
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimizer(**settings)


@pytest.mark.parametrize("values", [{"lr": -1.0}, {"weight_decay": float("nan")}], ids=str)
def test_mistakes_in_roles(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"optimizer: roles: .* a number that is not negative"):
        Role(**values)
