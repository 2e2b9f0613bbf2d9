"""Every mixer gives on the GPU what it gives on the CPU: answers, states, gradients, both directions, decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from paribus.evaluation.contract.subjects import MIXER, agree, build, finite, in_pieces, tokens
from paribus.nn.component import MIXERS
from tests.gpu.both import as_exact_in_float32, same_in_float64
from tests.unit.nn.kernel_cases import random_segments, real

pytestmark = pytest.mark.gpu

T, PRESET_WIDTH = 48, 64
CASES = [(name, preset) for name in MIXERS.names() for preset in (None, *getattr(MIXERS.module(name), "PRESETS", {}))]


def mix(mixer: nn.Module, inputs: dict[str, Any]) -> Any:
    """Outputs, padding left out, and the states where there are any."""
    y, state = mixer(inputs["x"], segments=inputs["segments"], keep_state=mixer.placement.causal)
    return real(y, inputs["segments"]), state


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize(("name", "preset"), CASES)
def test_the_gpu_agrees_with_the_cpu(
    name: str, preset: str | None, layout: str, causal: bool, device: torch.device
) -> None:
    settings = None if preset is None else {"preset": preset}
    mixer = build(MIXER, name, width=PRESET_WIDTH, causal=causal, longest=T, settings=settings)
    inputs = {
        "x": tokens(3, T, width=PRESET_WIDTH),
        "segments": random_segments(3, T) if layout == "segments" else None,
    }
    same_in_float64(f"{name}: {preset}", mixer, inputs, mix, device)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", MIXERS.names())
def test_float32_is_as_exact_as_on_the_cpu(name: str, causal: bool, device: torch.device) -> None:
    mixer = build(MIXER, name, causal=causal, longest=150)
    as_exact_in_float32(name, mixer, {"x": tokens(2, 150), "segments": random_segments(2, 150)}, mix, device)


@pytest.mark.parametrize("layout", ["plain", "segments"])
@pytest.mark.parametrize("name", MIXERS.names())
def test_pieces_on_the_gpu(name: str, layout: str, device: torch.device) -> None:
    mixer = build(MIXER, name, longest=T).to(device).eval()
    x, segments = tokens(3, T).to(device), random_segments(3, T).to(device) if layout == "segments" else None
    with torch.no_grad():
        whole, _ = mixer(x, segments=segments)
        pieces = in_pieces(mixer, x, segments, (1, 20, 21, T - 1))
    agree(name, real(pieces, segments), real(whole, segments), 1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", MIXERS.names())
def test_autocast_stays_finite(name: str, causal: bool, dtype: torch.dtype, device: torch.device) -> None:
    mixer = build(MIXER, name, causal=causal, longest=T, dtype=torch.float32).to(device)
    x = tokens(2, T, dtype=torch.float32).to(device).requires_grad_()
    with torch.autocast(device.type, dtype=dtype):
        y, _ = mixer(x, segments=random_segments(2, T).to(device))
        loss = y.float().square().mean()
    loss.backward()
    finite(name, y)
    finite(f"{name}: gradient", x.grad)
    with torch.no_grad():
        exact, _ = mixer(x, segments=random_segments(2, T).to(device))
    agree(f"{name}: beside float32", real(y.float(), random_segments(2, T).to(device)),
          real(exact, random_segments(2, T).to(device)), 0.1)  # fmt: skip
