"""One model over several processes: each holds a share of every parameter, of its gradient and of its optimizer state.

It is FSDP2 (``torch.distributed.fsdp.fully_shard``) over all processes of the run. A block gathers its parameters when
it begins, forward and backward, and lets go of them when it ends; the embedding, the last norm and the head do so
around the whole model. Between steps the parameters are ``DTensor``s, and so is what an optimizer keeps of them.
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from paribus.nn.mixer import SharedPart
from paribus.nn.task import TaskModel
from paribus.optim.shares import SHARED

from .run import Run


def check_shard(run: Run) -> None:
    """Refuse what does not work on shares of a model.

    Raises:
        ValueError: another device than the CPU or CUDA, fp16, compilation, or an optimizer that is not in `SHARED`.
    """
    if run.device == "mps":
        raise ValueError("run: parallel is 'shard', which needs device 'cpu' or 'cuda'; device is 'mps'")
    if run.precision == "fp16":
        raise ValueError("run: parallel is 'shard', which needs precision 'fp32' or 'bf16'; precision is 'fp16'")
    if run.compile:
        raise ValueError("run: parallel is 'shard', which needs compile false; compile is true")
    if run.optimizer.name not in SHARED:
        raise ValueError(
            f"run: parallel is 'shard', and optimizer '{run.optimizer.name}' needs whole tensors; "
            f"those that do not: {', '.join(sorted(SHARED))}"
        )


def shard(model: TaskModel, device: torch.device) -> None:
    """Leave in this process its share of the parameters of `model`, which is the same in all processes.

    Gradients become the mean over processes, as they are where each holds the whole model.
    A parameter has a gradient in every process or in none, or they would wait for each other.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in model.modules():
        if isinstance(part, SharedPart):
            fully_shard(part, mesh=mesh)
            register_fsdp_forward_method(part, "share")
    for block in model.model.blocks:
        fully_shard(block, mesh=mesh)
    # The root too lets go of its parameters after forward: what reads parameters between steps finds shares only.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "state_bytes")
