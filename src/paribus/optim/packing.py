"""Everything that an optimizer remembers, as named tensors and JSON, and back to the bit."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_INTERNAL = {"state", "param_groups", "defaults"}


def pack_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State tensors by names without meaning, and everything else as JSON that refers to them.

    The tensors share memory with the optimizer where they can; write them before its next step.

    Raises:
        TypeError: the optimizer keeps something that is neither a tensor, a number, a string nor a nest of those.
    """
    packer = _Packer()
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    facts = {
        "state": {names[parameter]: packer.pack(state) for parameter, state in optimizer.state.items()},
        "groups": [packer.pack(_remembered(group)) for group in optimizer.param_groups],
        "attributes": packer.pack(_attributes(optimizer)),
    }
    return packer.tensors, facts


def unpack_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Put what `pack_optimizer` returned into an optimizer that was made anew for the same model and settings.

    Raises:
        ValueError: what was packed is of other parameters or another optimizer.
    """
    parameters = dict(model.named_parameters())
    strange = facts["state"].keys() - parameters.keys()
    if strange or len(facts["groups"]) != len(optimizer.param_groups):
        raise ValueError(
            f"the optimizer's checkpoint is not of this model and optimizer: {sorted(strange) or 'groups'}"
        )
    device = next(iter(parameters.values())).device
    unpacker = _Unpacker(tensors, device)
    for name, state in facts["state"].items():
        optimizer.state[parameters[name]] = unpacker.unpack(state)
    for group, values in zip(optimizer.param_groups, facts["groups"], strict=True):
        group.update(unpacker.unpack(values))
    for name, value in unpacker.unpack(facts["attributes"]).items():
        setattr(optimizer, name, value)


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that the optimizer remembers, each once."""
    held = [optimizer.state, [_remembered(group) for group in optimizer.param_groups], _attributes(optimizer)]
    return sum({id(tensor): tensor.nbytes for tensor in _tensors(held)}.values())


def _remembered(group: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a group that may change while training; parameters, functions and types are settings."""
    return {
        key: value
        for key, value in group.items()
        if key != "params" and not callable(value) and not isinstance(value, torch.dtype)
    }


def _attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the optimizer remembers outside of its state and groups, such as whether it is in training mode."""
    return {
        key: value
        for key, value in vars(optimizer).items()
        if key not in _INTERNAL and not key.startswith("_") and isinstance(value, bool | int | float | Tensor)
    }


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | deque):
        for item in value:
            yield from _tensors(item)


class _Packer:
    """Turns nests into JSON; a tensor that is met twice is kept once, as it is one tensor after unpacking too."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.known: dict[int, dict[str, Any]] = {}

    def pack(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, Tensor):
            if id(value) not in self.known:
                self.known[id(value)] = self._pack_tensor(value)
            return self.known[id(value)]
        if isinstance(value, Mapping):
            return {"mapping": [[self.pack(key), self.pack(item)] for key, item in value.items()]}
        if isinstance(value, deque):
            return {"deque": [self.pack(item) for item in value], "longest": value.maxlen}
        if isinstance(value, list | tuple):
            return {"tuple" if isinstance(value, tuple) else "list": [self.pack(item) for item in value]}
        raise TypeError(f"the optimizer keeps {type(value).__name__} {value!r}, which a checkpoint cannot hold")

    def _pack_tensor(self, tensor: Tensor) -> dict[str, Any]:
        """Axes are stored by falling stride and put back later: products round by how their factors lie in memory."""
        strides = tensor.stride()
        order = sorted(range(tensor.dim()), key=strides.__getitem__, reverse=True)
        name = f"{len(self.tensors):06d}"
        self.tensors[name] = tensor.detach().permute(order).contiguous().cpu()
        return {"tensor": name, "order": order, "device": tensor.device.type}


class _Unpacker:
    """The way back."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self.tensors = tensors
        self.device = device
        self.known: dict[str, Tensor] = {}

    def unpack(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if "tensor" in value:
            if value["tensor"] not in self.known:
                self.known[value["tensor"]] = self._unpack_tensor(value)
            return self.known[value["tensor"]]
        if "mapping" in value:
            return {self.unpack(key): self.unpack(item) for key, item in value["mapping"]}
        if "deque" in value:
            return deque((self.unpack(item) for item in value["deque"]), maxlen=value["longest"])
        if "float" in value:
            return float(value["float"])
        kind = tuple if "tuple" in value else list
        return kind(self.unpack(item) for item in next(iter(value.values())))

    def _unpack_tensor(self, value: Mapping[str, Any]) -> Tensor:
        device = "cpu" if value["device"] == "cpu" else self.device
        inverse = sorted(range(len(value["order"])), key=value["order"].__getitem__)
        return self.tensors[value["tensor"]].to(device, copy=True).permute(inverse)
