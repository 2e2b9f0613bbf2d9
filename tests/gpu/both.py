"""One module on the CPU and on the GPU: what it answers, its states and all its gradients, side by side.

Two ways to compare. In float64 both do the same sums in another order, so they agree to rounding. In float32 the GPU is
compared with the CPU's float64, and may err by no more than `SLACK` times what the CPU itself errs in float32: how
many digits a component keeps is its own business, that it keeps them on a GPU too is what is tested.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paribus.evaluation.contract.subjects import agree, distance
from paribus.nn.state import state_tensors

CPU = torch.device("cpu")
SLACK, LEAST = 8.0, 2e-5
Call = Callable[[nn.Module, dict[str, Any]], Any]
"""call(module, inputs) -> a nest of tensors."""


def placed(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A tensor on `device`, numbers with a point in `dtype`; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().to(device, dtype if value.is_floating_point() else value.dtype, copy=True)


def answers(
    module: nn.Module, inputs: Mapping[str, Any], call: Call, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Everything that `call` returns and every gradient of a fixed weighting of it, on the CPU, by name."""
    module = copy.deepcopy(module).to(device, dtype)
    given = {name: placed(value, device, dtype) for name, value in inputs.items()}
    leaves = {name: x.requires_grad_() for name, x in given.items() if isinstance(x, Tensor) and x.is_floating_point()}
    torch.manual_seed(0)
    found = [x for x in state_tensors(call(module, given)) if x.is_floating_point() or x.is_complex()]
    assert found
    assert all(x.device.type == device.type for x in found), [x.device for x in found]
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(x.shape, generator=draw, dtype=torch.float64) for x in found]
    terms = [(x * w.to(device, x.real.dtype)).real.sum() for x, w in zip(found, weights, strict=True)]
    torch.stack([term.to(dtype) for term in terms]).sum().backward()
    gradients = {name: x.grad for name, x in (*module.named_parameters(), *leaves.items()) if x.grad is not None}
    assert all(x.device.type == device.type for x in gradients.values())
    every = {**{f"answer {number}": x for number, x in enumerate(found)}, **gradients}
    return {name: torch.view_as_real(x.detach().cpu().resolve_conj()) if x.is_complex() else x.detach().cpu()
            for name, x in every.items()}  # fmt: skip


def same_in_float64(
    where: str, module: nn.Module, inputs: Mapping[str, Any], call: Call, device: torch.device, tolerance: float = 1e-8
) -> None:
    """Assert that the GPU computes in float64 what the CPU does, gradients included."""
    here, there = (answers(module, inputs, call, place, torch.float64) for place in (CPU, device))
    assert here.keys() == there.keys()
    for name, expected in here.items():
        agree(f"{where}: {name}", there[name], expected, tolerance)


def as_exact_in_float32(
    where: str, module: nn.Module, inputs: Mapping[str, Any], call: Call, device: torch.device
) -> None:
    """Assert that the GPU's float32 is about as near to float64 as the CPU's float32."""
    assert not torch.backends.cuda.matmul.allow_tf32, "products in TF32 have other errors"
    exact = answers(module, inputs, call, CPU, torch.float64)
    here, there = (answers(module, inputs, call, place, torch.float32) for place in (CPU, device))
    assert exact.keys() == here.keys() == there.keys()
    worst = max(distance(here[name], exact[name]) for name in exact)
    for name, expected in exact.items():
        agree(f"{where}: {name}", there[name], expected, max(LEAST, SLACK * worst))
