"""Everything that an optimizer remembers, as named tensors and JSON, and back to the bit."""

from __future__ import annotations

import importlib
import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .shares import share_as, whole

_KNOWN_ATTRIBUTES = {"state", "param_groups", "defaults"}
_LIBRARY = "pytorch_optimizer."
"""Whose small objects (a preconditioner with its statistics) are taken apart and put together again."""


def pack_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under numbers, and everything else as JSON that refers to them.

    The tensors share memory with the optimizer where they can; write them before its next step. Those of which each
    process holds a share come whole, so that all processes have to call this together. numpy's generator, from which
    some optimizers draw, is part of it; torch's is not.

    Args:
        keep: False leaves the tensors out, where another process writes them.

    Raises:
        TypeError: the optimizer keeps something that JSON and tensors cannot hold.
    """
    packer = _Packer(keep)
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    state = dict(optimizer.state)
    shared = {key: state.pop(key) for key in list(state) if isinstance(key, str)}
    facts = {
        "parameters": {names[parameter]: packer.pack(value) for parameter, value in state.items()},
        "shared": packer.pack(shared),
        "groups": [packer.pack(_remembered(group)) for group in optimizer.param_groups],
        "attributes": packer.pack(_attributes(optimizer)),
        "numpy": _numpy_state(),
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
    strange = sorted(facts["parameters"].keys() - parameters.keys())
    if strange or len(facts["groups"]) != len(optimizer.param_groups):
        found = f"parameter '{strange[0]}'" if strange else f"{len(facts['groups'])} groups"
        raise ValueError(f"optimizer: its checkpoint has {found}, which this code's model or optimizer has not")
    unpacker = _Unpacker(tensors, next(iter(parameters.values())).device)
    for name, state in facts["parameters"].items():
        unpacker.parameter = parameters[name]
        optimizer.state[parameters[name]] = unpacker.unpack(state)
    unpacker.parameter = None
    shared: dict[Any, Any] = unpacker.unpack(facts["shared"])
    optimizer.state.update(shared)
    for group, values in zip(optimizer.param_groups, facts["groups"], strict=True):
        group.update(unpacker.unpack(values))
    vars(optimizer).update(unpacker.unpack(facts["attributes"]))
    numpy.random.set_state(tuple(facts["numpy"]))


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that the optimizer remembers, each once, and all shares of those that are shared out."""
    held = [optimizer.state, [_remembered(group) for group in optimizer.param_groups], _attributes(optimizer)]
    return sum({id(tensor): tensor.nbytes for tensor in _tensors(held)}.values())


def _numpy_state() -> list[Any]:
    algorithm, keys, *rest = numpy.random.get_state(legacy=True)
    return [algorithm, [int(key) for key in keys], *rest]


def _remembered(group: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a group that training may change; parameters, functions and types are settings."""
    return {
        key: value
        for key, value in group.items()
        if key != "params" and not callable(value) and not isinstance(value, torch.dtype)
    }


def _attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimizer remembers outside of its state and groups, such as how many steps it took."""
    return {
        key: value
        for key, value in vars(optimizer).items()
        if key not in _KNOWN_ATTRIBUTES and not key.startswith("_") and isinstance(value, bool | int | float | Tensor)
    }


def _is_object(value: Any) -> bool:
    return type(value).__module__.startswith(_LIBRARY)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | deque):
        for item in value:
            yield from _tensors(item)
    elif _is_object(value):
        yield from _tensors(vars(value))


class _Packer:
    """Turns nests into JSON; a tensor that is met twice is kept once, and is one tensor again after unpacking."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
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
        if _is_object(value):
            cls = type(value)
            return {"object": f"{cls.__module__}:{cls.__qualname__}", "holds": self.pack(vars(value))}
        raise TypeError(f"optimizer: it keeps a {type(value).__name__}, which a checkpoint cannot hold: {value!r}")

    def _pack_tensor(self, tensor: Tensor) -> dict[str, Any]:
        """Axes are stored by falling stride and put back later: products round by how their factors lie in memory."""
        tensor = whole(tensor.detach())
        strides = tensor.stride()
        order = sorted(range(tensor.dim()), key=strides.__getitem__, reverse=True)
        name = f"{len(self.known):06d}"
        if self.keep:
            self.tensors[name] = tensor.permute(order).contiguous().cpu()
        return {"tensor": name, "order": order, "device": tensor.device.type}


class _Unpacker:
    """The way back.

    Attributes:
        parameter: whose state is unpacked; what has its shape is shared out as it is.
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self.tensors = tensors
        self.device = device
        self.parameter: Tensor | None = None
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
        if "object" in value:
            return self._unpack_object(value)
        kind = tuple if "tuple" in value else list
        return kind(self.unpack(item) for item in value[kind.__name__])

    def _unpack_object(self, value: Mapping[str, Any]) -> Any:
        module, _, name = value["object"].partition(":")
        if not module.startswith(_LIBRARY):
            raise ValueError(f"optimizer: its checkpoint has an object of {module}; only {_LIBRARY}* is allowed")
        cls = getattr(importlib.import_module(module), name)
        made = cls.__new__(cls)
        vars(made).update(self.unpack(value["holds"]))
        return made

    def _unpack_tensor(self, value: Mapping[str, Any]) -> Tensor:
        device = "cpu" if value["device"] == "cpu" else self.device
        inverse = sorted(range(len(value["order"])), key=value["order"].__getitem__)
        tensor = self.tensors[value["tensor"]].to(device, copy=True).permute(inverse)
        if self.parameter is None or self.parameter.shape != tensor.shape:
            return tensor
        return share_as(tensor, self.parameter)
