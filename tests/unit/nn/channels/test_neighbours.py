"""RWKV's channel mixing beside transformers' own; convolutions beside torch's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import RwkvConfig
from transformers.models.rwkv.modeling_rwkv import RwkvFeedForward

from paribus.nn.component import make_channel
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Placement
from paribus.nn.segments import resolve
from paribus.nn.state import state_bytes
from paribus.nn.window_linear import WindowLinear

WIDTH = 12


def tokens(B: int, T: int) -> Tensor:
    return torch.randn(B, T, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_rwkv_is_that_of_transformers() -> None:
    ours = make_channel({"name": "rwkv", "preset": "rwkv4"}, Placement(WIDTH))
    initialize(ours, seed=0)
    ours = ours.double()
    theirs = RwkvFeedForward(RwkvConfig(hidden_size=WIDTH, intermediate_size=4 * WIDTH)).double()
    with torch.no_grad():
        theirs.time_mix_key.copy_(1 - ours.key_mix)
        theirs.time_mix_receptance.copy_(1 - ours.receptance_mix)
        theirs.key.weight.copy_(ours.key.weight)
        theirs.receptance.weight.copy_(ours.receptance.weight)
        theirs.value.weight.copy_(ours.output.weight)
    x = tokens(2, 9)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=1e-12, atol=1e-12)


def test_rwkv_begins_with_the_token_before_in_its_first_channels() -> None:
    channel = make_channel({"name": "rwkv"}, Placement(WIDTH))
    initialize(channel, seed=0)
    expected = torch.tensor([1 - i / WIDTH for i in range(WIDTH)])
    torch.testing.assert_close(channel.key_mix.data, expected)
    torch.testing.assert_close(channel.receptance_mix.data, expected)


def test_a_window_map_is_a_convolution() -> None:
    for groups in (1, 3):
        part = WindowLinear(WIDTH, 6, taps=4, causal=True, num_groups=groups).double()
        x = tokens(2, 9)
        weight = part.weight.unflatten(1, (4, -1)).transpose(1, 2)  # F E/groups W
        expected = functional.conv1d(functional.pad(x.transpose(1, 2), (3, 0)), weight, groups=groups).transpose(1, 2)
        torch.testing.assert_close(part(x, resolve(x, None, None), None)[0], expected, rtol=1e-12, atol=1e-12)


def test_states_are_as_large_as_documented() -> None:
    x, inner = tokens(1, 30), WIDTH // 2
    expected = {
        "convolution": 4 * (WIDTH + 2 * WIDTH),
        "rwkv": WIDTH,
        "time_residue_exchange": 4 * (WIDTH + inner) + 4 * (8 * inner + 2),
    }
    for name, numbers in expected.items():
        channel = make_channel({"name": name}, Placement(WIDTH)).double()
        initialize(channel, seed=0)
        segment_and_position = 2
        assert state_bytes(channel(x, keep_state=True)[1]) == 8 * (numbers + segment_and_position)
