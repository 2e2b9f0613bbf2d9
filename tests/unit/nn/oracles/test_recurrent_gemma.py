"""The rg_lru mixer is RecurrentGemma's recurrent block: transformers' own gives the same with the same weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import RecurrentGemmaConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

from paribus.nn.component import make_mixer
from paribus.nn.mixer import Mixer, Placement
from tests.unit.nn.kernel_cases import close

WIDTH, HEADS = 12, 3
RENAMED = {
    "linear_y": "gate",
    "linear_x": "input",
    "linear_out": "output",
    "conv_1d.bias": "convolution_bias",
    "rg_lru.recurrent_param": "rate",
    "rg_lru.recurrent_gate_weight": "recurrence_gate",
    "rg_lru.recurrent_gate_bias": "recurrence_bias",
    "rg_lru.input_gate_weight": "input_gate",
    "rg_lru.input_gate_bias": "input_bias",
}


def theirs() -> nn.Module:
    config = RecurrentGemmaConfig(
        hidden_size=WIDTH, lru_width=WIDTH, num_attention_heads=HEADS, conv1d_width=4, hidden_activation="gelu"
    )
    block = RecurrentGemmaRecurrentBlock(config, layer_idx=0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4)
    return block.eval()


def ours(block: nn.Module) -> Mixer:
    mixer = make_mixer({"name": "rg_lru", "preset": "recurrent_gemma", "num_heads": HEADS}, Placement(width=WIDTH))
    weights = {}
    for name, value in block.state_dict().items():
        for before, after in RENAMED.items():
            name = name.replace(before, after)
        weights[name] = value
    weights["convolution"] = weights.pop("conv_1d.weight")[:, 0]
    for name in ("recurrence_bias", "input_bias"):
        weights[name] = weights[name].flatten()
    mixer.load_state_dict(weights)
    return mixer


def run(block: nn.Module, x: Tensor, start: int = 0, use_cache: bool = False) -> Tensor:
    positions = torch.arange(start, start + x.shape[1]).expand(x.shape[:2])
    return block(x, positions, None, use_cache=use_cache)[0]


def test_outputs_and_gradients() -> None:
    block, x = theirs(), torch.randn(2, 30, WIDTH, requires_grad=True)
    mixer = ours(block)
    y, expected = mixer(x)[0], run(block, x)
    close(y, expected, 1e-5)
    gradients = torch.autograd.grad(y.square().sum(), [x, mixer.rate, mixer.recurrence_gate, mixer.input_bias])
    lru = block.rg_lru
    leaves = [x, lru.recurrent_param, lru.recurrent_gate_weight, lru.input_gate_bias]
    wanted = torch.autograd.grad(expected.square().sum(), leaves)
    close(gradients, [*wanted[:3], wanted[3].flatten()], 1e-5)


@torch.no_grad()
def test_decoding() -> None:
    block, x = theirs(), torch.randn(2, 12, WIDTH)
    mixer = ours(block)
    expected = [run(block, x[:, :7], use_cache=True)]
    y, state = mixer(x[:, :7], keep_state=True)
    outputs = [y]
    for t in range(7, 12):
        expected.append(run(block, x[:, t : t + 1], t, use_cache=True))
        y, state = mixer(x[:, t : t + 1], state=state, keep_state=True)
        outputs.append(y)
    close(outputs, expected, 1e-5)
