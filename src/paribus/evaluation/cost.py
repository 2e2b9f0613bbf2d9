"""What a model costs, measured: parameters, FLOPs, bytes carried while decoding, peak memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paribus.nn.kernels.cost import FlopCounter
from paribus.nn.task import TaskModel
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

STATE_LENGTHS = (256, 1024, 4096)
"""Sequence lengths, in tokens, at which the decoding state is weighed."""


def training_flops(model: TaskModel, example: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> float:
    """FLOPs of one forward and backward pass on `example`, the model's arguments; gradients are left at None.

    Args:
        arguments: what else the model is called with.
    """
    device = next(model.parameters()).device
    with FlopCounter() as counter:
        model(**{name: x.to(device) for name, x in example.items()}, **arguments).loss.backward()
    model.zero_grad(set_to_none=True)
    return float(counter.total)


def decoding_state_bytes(model: TaskModel) -> dict[str, int]:
    """Bytes that decoding carries after each of `STATE_LENGTHS` that the model may read; none where nothing decodes."""
    if not isinstance(model, ParibusForCausalLM):
        return {}
    longest = model.config.max_position_embeddings
    was_training = model.training
    model.eval()
    sizes = {str(length): model.state_bytes(length) for length in STATE_LENGTHS if length <= longest}
    model.train(was_training)
    return sizes


def reset_peak_memory() -> None:
    """Begin a new measurement of `peak_memory_bytes` where the system allows it (Linux, CUDA)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # elsewhere the peak is that of the whole process


def peak_memory_bytes(device: str) -> int:
    """The largest memory used since `reset_peak_memory`: the device's, or the process's resident set on the CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: the whole process's peak, below
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
