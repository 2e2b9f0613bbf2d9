"""Every mixer gives on the GPU what it gives on the CPU, trains there in bfloat16, and so does a whole run."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from paribus.evaluation.contract.subjects import MIXER, agree, build, finite, tokens
from paribus.nn.component import MIXERS
from paribus.nn.mixer import Mixer
from paribus.nn.state import state_tensors
from paribus.training.loop import train
from tests import small
from tests.unit.nn.kernel_cases import random_segments, real

pytestmark = pytest.mark.gpu

T = 48


def answers(mixer: Mixer, x: Tensor, segments: Tensor | None, device: torch.device) -> list[Tensor]:
    """Outputs, states, and the gradients of the inputs and of every parameter, brought back to the CPU."""
    mixer = copy.deepcopy(mixer).to(device)
    x = x.detach().to(device).requires_grad_()
    marks = None if segments is None else segments.to(device)
    causal = mixer.placement.causal
    y, state = mixer(x, segments=marks, keep_state=causal)
    y = real(y, marks)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=device).view_as(y)).sum().backward()
    gradients = [parameter.grad for parameter in (x, *mixer.parameters()) if parameter.grad is not None]
    states = [tensor for tensor in state_tensors(state) if tensor.is_floating_point()]
    return [tensor.detach().cpu() for tensor in (y, *states, *gradients)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("name", MIXERS.names())
def test_the_gpu_agrees_with_the_cpu(name: str, layout: str, causal: bool, device: torch.device) -> None:
    mixer = build(MIXER, name, causal=causal, longest=T)
    segments = random_segments(3, T) if layout == "segments" else None
    x = tokens(3, T)
    here, there = (answers(mixer, x, segments, place) for place in (torch.device("cpu"), device))
    assert len(here) == len(there)
    for index, (expected, found) in enumerate(zip(here, there, strict=True)):
        agree(f"{name}: tensor {index}", found, expected, 1e-8)


@pytest.mark.parametrize("name", MIXERS.names())
def test_decoding_on_the_gpu(name: str, device: torch.device) -> None:
    mixer = build(MIXER, name, longest=T).to(device).eval()
    x = tokens(2, T).to(device)
    whole, _ = mixer(x)
    first, state = mixer(x[:, :-1], keep_state=True)
    last, _ = mixer(x[:, -1:], state=state, keep_state=True)
    agree(name, torch.cat([first, last], 1), whole, 1e-8)


@pytest.mark.parametrize("name", MIXERS.names())
def test_autocast_stays_finite(name: str, device: torch.device) -> None:
    mixer = build(MIXER, name, longest=T, dtype=torch.float32).to(device)
    x = tokens(2, T, dtype=torch.float32).to(device).requires_grad_()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y, _ = mixer(x)
    y.float().square().mean().backward()
    finite(name, y)
    finite(f"{name}: gradient", x.grad)


def test_a_run(text: Path, cache: Path, tmp_path: Path, device: torch.device) -> None:
    here = train(small.run(text, mixer="gla"), tmp_path / "cpu", cache)
    there = train(small.run(text, mixer="gla", device=device.type), tmp_path / "gpu", cache)
    assert there["scores"]["test"]["bits_per_byte"] == pytest.approx(here["scores"]["test"]["bits_per_byte"], abs=1e-2)
    assert there["batches_sha256"] == here["batches_sha256"]
