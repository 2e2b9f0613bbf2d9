"""Gated DeltaNet and Kimi delta attention beside transformers' own layers with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.kimi_linear.configuration_kimi_linear import KimiLinearConfig
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention
from transformers.models.olmo_hybrid.configuration_olmo_hybrid import OlmoHybridConfig
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from paribus.evaluation.contract.subjects import MIXER, agree, build, tokens

B, T, D, H, K, V, TAPS = 2, 70, 32, 4, 6, 12, 4
LINEAR = {
    "linear_num_key_heads": H,
    "linear_num_value_heads": H,
    "linear_key_head_dim": K,
    "linear_value_head_dim": V,
    "linear_conv_kernel_dim": TAPS,
}
SHARED = {
    "hidden_size": D,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "rms_norm_eps": 1e-6,
}


def shaken(layer: nn.Module) -> Any:
    """The layer with weights far from zero and from one another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer.eval()


def filled(name: str, weights: dict[str, Tensor], **settings: Any) -> Any:
    """Our mixer with exactly these weights."""
    mixer = build(MIXER, name, width=D, dtype=torch.float32, settings=settings)
    mixer.load_state_dict(weights)
    return mixer


def equal(name: str, ours: Any, theirs: Any) -> None:
    """The same answers to the same tokens."""
    x = tokens(B, T, width=D, dtype=torch.float32)
    with torch.no_grad():
        agree(name, ours(x)[0], theirs(x), 1e-5)


def convolutions(weight: Tensor, widths: tuple[int, int, int]) -> dict[str, Tensor]:
    """Their one convolution [3 E, 1, taps] as our three."""
    return {f"convolutions.{i}.weight": part[:, 0] for i, part in enumerate(weight.split(widths))}


def test_gated_delta_net_is_that_of_qwen3_next() -> None:
    theirs = shaken(Qwen3NextGatedDeltaNet(Qwen3NextConfig(**SHARED, **LINEAR), 0))
    by_head = theirs.in_proj_qkvz.weight.detach().unflatten(0, (H, -1)).split((K, K, V, V), 1)
    query, key, value, gate = (part.flatten(0, 1) for part in by_head)
    strength, decay = theirs.in_proj_ba.weight.detach().unflatten(0, (H, 2)).unbind(1)
    weights = {
        "query.weight": query,
        "key.weight": key,
        "value.weight": value,
        "gate.weight": gate,
        "strength.weight": strength,
        "decay.project.weight": decay,
        "decay.log_rate": theirs.A_log,
        "decay.bias": theirs.dt_bias,
        "norm.weight": theirs.norm.weight,
        "output.weight": theirs.out_proj.weight,
        **convolutions(theirs.conv1d.weight, (H * K, H * K, H * V)),
    }
    settings = {"num_heads": H, "taps": TAPS, "key_expansion": H * K / D, "value_expansion": H * V / D}
    equal("qwen3_next", filled("gated_delta_net", weights, **settings), theirs)


@pytest.mark.parametrize("negative", [False, True])
def test_negative_eigenvalues_are_those_of_olmo_hybrid(negative: bool) -> None:
    config = OlmoHybridConfig(**SHARED, **LINEAR, linear_allow_neg_eigval=negative)
    theirs = shaken(OlmoHybridGatedDeltaNet(config, 0))
    theirs.o_norm.variance_epsilon = 1e-6
    names = {"query": "q", "key": "k", "value": "v", "gate": "g", "strength": "b", "decay.project": "a", "output": "o"}
    weights = {
        **{f"{ours}.weight": getattr(theirs, f"{letter}_proj").weight for ours, letter in names.items()},
        "decay.log_rate": theirs.A_log,
        "decay.bias": theirs.dt_bias,
        "norm.weight": theirs.o_norm.weight,
        **convolutions(theirs.conv1d.weight, (H * K, H * K, H * V)),
    }
    settings = {"num_heads": H, "taps": TAPS, "key_expansion": H * K / D, "value_expansion": H * V / D}
    ours = filled("gated_delta_net", weights, negative_eigenvalues=negative, **settings)
    equal("olmo_hybrid", ours, theirs)


def test_kda_is_that_of_kimi_linear() -> None:
    linear = {"linear_num_heads": H, "linear_head_dim": D // H, "linear_conv_kernel_dim": TAPS}
    theirs = shaken(KimiLinearDeltaAttention(KimiLinearConfig(**SHARED, **linear), 0))
    names = {
        "query": "q_proj",
        "key": "k_proj",
        "value": "v_proj",
        "strength": "b_proj",
        "decay_down": "forget_gate.f_a_proj",
        "decay_up": "forget_gate.f_b_proj",
        "gate_down": "g_a_proj",
        "gate_up": "g_b_proj",
        "norm": "o_norm",
        "output": "o_proj",
    }
    weights = {
        **{f"{ours}.weight": theirs.get_submodule(name).weight for ours, name in names.items()},
        "decay_bias": theirs.forget_gate.dt_bias,
        "log_rate": theirs.forget_gate.A_log.flatten(),
        **convolutions(theirs.conv1d.weight, (D, D, D)),
    }
    equal("kimi_linear", filled("kda", weights, num_heads=H, taps=TAPS), theirs)
