"""The optimizer of a run, by name."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from paribus.nn.settings import nearest

from .registry import OPTIMIZERS
from .roles import ROLES, RoleName, parameter_roles

_RESERVED = {"params", "lr", "weight_decay", "maximize", "kwargs"}
_DECOUPLE = {"weight_decouple", "decoupled_weight_decay"}
"""What the classes call keeping weight decay out of the gradient."""
_DECAYED: tuple[RoleName, ...] = ("matrix", "head")


@dataclass(frozen=True)
class Role:
    """What differs for the parameters of one role.

    Raises:
        ValueError: a negative number.
    """

    lr: float = 1.0
    """Factor on the learning rate."""
    weight_decay: float | None = None
    """In place of the optimizer's; None leaves it."""

    def __post_init__(self) -> None:
        for key, value in (("lr", self.lr), ("weight_decay", self.weight_decay or 0.0)):
            if not 0 <= value < math.inf:
                raise ValueError(f"optimizer: roles: {key} is {value}; a number that is not negative is needed")


@dataclass(frozen=True)
class Optimizer:
    """How gradients become updates.

    Weight decay acts on matrices and the head; embeddings, vectors and gates are decayed only where `roles` says so.

    Raises:
        ValueError: an unknown name, setting or role, or a number that is negative.
    """

    name: str = "adamw"
    lr: float = 3e-3
    """The peak of the schedule."""
    weight_decay: float = 0.1
    settings: dict[str, Any] = field(default_factory=dict)
    """Further arguments of that optimizer, such as betas, by its own names."""
    roles: dict[str, Role] = field(default_factory=dict)
    """Role of parameters (embedding, matrix, vector, head, gate) -> what differs for them."""
    clip_norm: float = 1.0
    """Gradients longer than this, over all parameters, are scaled down to it; 0 clips nothing."""
    clip_adaptive: float = 0.0
    """Largest norm of a gradient as a share of its weight's norm (adaptive gradient clipping); 0 clips nothing."""
    clip_scope: Literal["tensor", "unit"] = "tensor"
    """What adaptive clipping takes the norms over: whole tensors, or each output unit."""

    def __post_init__(self) -> None:
        for key in ("lr", "weight_decay", "clip_norm", "clip_adaptive"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"optimizer: {key} is {getattr(self, key)}; a number that is not negative is needed")
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer: unknown name '{self.name}'; {nearest(self.name, OPTIMIZERS)}")
        for role in self.roles:
            if role not in ROLES:
                raise ValueError(f"optimizer: unknown role '{role}'; {nearest(role, ROLES)}")
            if OPTIMIZERS[self.name].one_lr and self.roles[role].lr != 1:
                raise ValueError(
                    f"optimizer: roles: {role}: lr is {self.roles[role].lr}; '{self.name}' has one for all"
                )
        if self.settings:
            _check_settings(self)


def make_optimizer(settings: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `settings` over the trained parameters of `model`, one group for each role.

    Each group knows its "role" and its "lr_factor".
    """
    roles = parameter_roles(model)
    members: dict[RoleName, list[nn.Parameter]] = {role: [] for role in ROLES}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[roles[name]].append(parameter)
    return _construct(settings, members)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group `lr` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def _construct(settings: Optimizer, members: Mapping[RoleName, list[nn.Parameter]]) -> torch.optim.Optimizer:
    cls, entry = _class_of(settings.name), OPTIMIZERS[settings.name]
    groups = [{"params": found, **_group_settings(settings, role)} for role, found in members.items() if found]
    chosen: dict[str, Any] = dict.fromkeys(_DECOUPLE & _settings_of(cls), True)
    chosen |= {**entry.settings, **settings.settings}
    chosen = {key: tuple(value) if isinstance(value, list) else value for key, value in chosen.items()}
    try:
        optimizer: torch.optim.Optimizer = cls(groups, lr=settings.lr, **chosen)
    except (IndexError, TypeError, ValueError) as problem:
        raise ValueError(f"optimizer '{settings.name}': settings {settings.settings}: {problem}") from None
    return optimizer


def _group_settings(settings: Optimizer, role: RoleName) -> dict[str, Any]:
    own = settings.roles.get(role, Role())
    decay = settings.weight_decay if role in _DECAYED else 0.0
    return {
        "role": role,
        "lr_factor": own.lr,
        "lr": settings.lr * own.lr,
        "weight_decay": decay if own.weight_decay is None else own.weight_decay,
        "use_muon": role == "matrix",  # read by optimizers that orthogonalise matrices and leave the rest to AdamW
    }


def _check_settings(settings: Optimizer) -> None:
    """Names against the class's signature, values by making one."""
    known = _settings_of(_class_of(settings.name))
    for key in settings.settings:
        if key not in known:
            raise ValueError(f"optimizer '{settings.name}': unknown setting '{key}'; {nearest(key, known)}")
    _construct(settings, {"matrix": [nn.Parameter(torch.zeros(2, 2))]})


def _settings_of(cls: type[Any]) -> set[str]:
    return set(inspect.signature(cls).parameters) - _RESERVED


def _class_of(name: str) -> type[Any]:
    """The class behind a name; its library is imported only now, as that takes seconds."""
    module, _, cls = OPTIMIZERS[name].cls.partition(":")
    found: type[Any] = getattr(importlib.import_module(module), cls)
    return found
