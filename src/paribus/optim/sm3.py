"""SM3 with Nesterov momentum: second moments kept as one vector for each axis of a weight."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class SM3(torch.optim.Optimizer):
    """SM3-II (Anil et al. 2019, arXiv:1901.11150), then Nesterov momentum that sums and does not average.

        ν     = min over axes r of μ_r + g²            u = g / √(ν + 1e-30)
        μ_r   = max of ν over all axes but r
        m     = b m + u                                w ← (1 - lr · weight_decay) w - lr (u + b m)

    A lasting gradient is amplified by 1 / (1 - b): with b = 0.9, a learning rate of 1e-3 acts like 1e-2 of an optimizer
    that averages. b = 0 is SM3-II as published and keeps no m.

    Raises:
        ValueError: a momentum outside [0, 1).
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; 0 or more and less than 1 is needed")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._update(parameter.grad, self.state[parameter], group["momentum"])
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])

    def _update(self, gradient: Tensor, state: dict[str, Any], momentum: float) -> Tensor:
        num_axes = max(1, gradient.dim())
        if not state:
            for axis in range(num_axes):
                shape = [size if other == axis else 1 for other, size in enumerate(gradient.shape)]
                state[f"accumulator_{axis}"] = gradient.new_zeros(shape)
            if momentum:
                state["momentum"] = torch.zeros_like(gradient)
        accumulators = [state[f"accumulator_{axis}"] for axis in range(num_axes)]
        second = gradient.square() + functools.reduce(torch.minimum, accumulators)
        for axis, accumulator in enumerate(accumulators):
            others = [other for other in range(gradient.dim()) if other != axis]
            accumulator.copy_(second.amax(others, keepdim=True) if others else second)
        update = second.add_(1e-30).rsqrt_().mul_(gradient)
        if not momentum:
            return update
        state["momentum"].mul_(momentum).add_(update)
        return update.add_(state["momentum"], alpha=momentum)
