"""Tensors of which each of several processes holds a share of the rows, and the optimizers that can work on them."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

SHARED = frozenset(
    {
        *("accsgd", "adabelief", "adabound", "adadelta", "adagrad", "adai", "adam", "adamax", "adamc", "adamg"),
        *("adamod", "adams", "adamuon", "adamw", "adamwsn", "adapnm", "ademamix", "aggmo", "ano", "bcos", "dualadam"),
        *("exadam", "focus", "grams", "grokfastadamw", "kate", "laprop", "lion", "muon", "nadam", "padam", "pid"),
        *("pnm", "qhadam", "qhm", "radam", "rmsprop", "schedulefreeadamw", "schedulefreeradam", "schedulefreesgd"),
        *("scion", "scionlight", "sgd", "sgdsai", "signsgd", "simplifiedademamix", "tiger", "vsgd", "yogi"),
    }
)
"""Optimizers that make of shares what they make of whole tensors. Others use operations that DTensor lacks, fail where
a process has no row, or mix shares with what they keep whole."""


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; one that is shared out is gathered, which all its processes have to do together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_as(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's share of a whole `tensor`, if `other` is shared out: by the same rows.

    Every process has the whole tensor; nothing is sent.
    """
    if not isinstance(other, DTensor):
        return tensor
    tensor = tensor.to(other.device).contiguous()
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def added_up(tensor: Tensor) -> Tensor:
    """A norm of tensors of which each process has a share: the same number in all processes."""
    if isinstance(tensor, DTensor) and any(placement.is_partial() for placement in tensor.placements):
        return tensor.redistribute(tensor.device_mesh, [Replicate()] * tensor.device_mesh.ndim)
    return tensor
