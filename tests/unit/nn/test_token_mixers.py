"""Mixers with an explicit matrix over tokens, against their papers' formulas, position by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paribus.evaluation.contract.subjects import MIXER, agree, build, tokens

LENGTH, WIDTH = 21, 8


def made(name: str, causal: bool, *, longest: int = LENGTH + 3, **settings: Any) -> Any:
    """A small mixer in float64, its parameters far from their initial values."""
    return build(MIXER, name, width=WIDTH, longest=longest, causal=causal, loud=True, settings=settings)


def reads(i: int, causal: bool) -> range:
    """The positions that position i reads."""
    return range(i + 1 if causal else LENGTH)


def equal(mixer: Any, x: Tensor, expected: list[Tensor]) -> None:
    """One answer for each position."""
    agree(type(mixer).__name__, mixer(x[None])[0][0], torch.stack(expected), 1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("preset", ["paper", "thread"])
def test_mlp_mixer(preset: str, causal: bool) -> None:
    mixer = made("mlp_mixer", causal, preset=preset, num_heads=2)
    units, V, x = mixer.config.token_expansion, WIDTH // 2, tokens(1, LENGTH, width=WIDTH)[0]
    hidden: dict[tuple[int, int, int], Tensor] = {}
    outputs = []
    for i in range(LENGTH):
        parts = []
        for h in range(2):
            for u in range(units):
                row = h * units + u
                z = sum(mixer.first[row, i, j] * x[j, h * V : (h + 1) * V] for j in reads(i, causal))
                if preset == "paper":
                    hidden[i, h, u] = F.gelu(z + mixer.first_bias[row, i])
                else:
                    hidden[i, h, u] = F.relu(F.layer_norm(z, (V,), mixer.norm.weight, None, 1e-6))
        outputs.append(parts)
    for i in range(LENGTH):
        for h in range(2):
            y = torch.zeros(V, dtype=torch.float64)
            for j in reads(i, causal):
                for u in range(units):
                    y = y + mixer.second[h * units + u, i, j] * hidden[j, h, u]
            outputs[i].append(y + mixer.second_bias[h, i] if preset == "paper" else y)
    equal(mixer, x, [torch.cat(parts) for parts in outputs])


def test_mlp_mixer_scales_rows_alike() -> None:
    plain, scaled = made("mlp_mixer", True, row_scale=False), made("mlp_mixer", True)
    x = tokens(1, 1, width=WIDTH)
    M = LENGTH + 3
    first = plain.first[0, 0, 0] * x * M**0.5
    agree("first token", scaled(x)[0], plain.second[0, 0, 0] * F.gelu(first) * M**0.5, 1e-12)
