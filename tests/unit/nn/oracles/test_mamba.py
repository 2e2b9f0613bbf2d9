"""The mamba mixer is Mamba: transformers' own code gives the same answers with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM

from paribus.evaluation.contract.subjects import shake
from paribus.nn.component import make_mixer
from paribus.nn.config import ParibusConfig
from paribus.nn.mixer import Placement
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from tests.unit.nn.kernel_cases import close

VOCABULARY, WIDTH, STATES, RANK, TAPS = 29, 16, 5, 3, 4
MIXER = {"name": "mamba", "states": STATES, "step_rank": RANK, "taps": TAPS}


@pytest.fixture(scope="module")
def theirs() -> MambaForCausalLM:
    config = MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        state_size=STATES,
        num_hidden_layers=2,
        time_step_rank=RANK,
        conv_kernel=TAPS,
        layer_norm_epsilon=1e-6,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = MambaForCausalLM(config).eval()
    shake(model)  # a fresh model repeats one token for ever
    return model


def weights_of(mixer: nn.Module) -> dict[str, Tensor]:
    """Their weights by our names."""
    weights = dict(mixer.state_dict())
    weights["input.weight"], weights["gate.weight"] = weights.pop("in_proj.weight").chunk(2)
    weights["convolution"] = weights.pop("conv1d.weight")[:, 0]
    weights["log_rate"] = weights.pop("A_log").T
    renamed = {
        "conv1d.bias": "convolution_bias",
        "x_proj.weight": "select.weight",
        "dt_proj.weight": "step.weight",
        "dt_proj.bias": "step_bias",
        "D": "skip",
        "out_proj.weight": "output.weight",
    }
    return {renamed.get(name, name): value for name, value in weights.items()}


@pytest.fixture(scope="module")
def ours(theirs: MambaForCausalLM) -> ParibusForCausalLM:
    """Our model with their weights; Mamba has no channel mixers, so ours write zeros."""
    config = ParibusConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        blocks={"main": {"mixer": MIXER, "channel": {"name": "glu"}}},
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = ParibusForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embedding.table.weight.copy_(theirs.backbone.embeddings.weight)
        model.model.norm.weight.copy_(theirs.backbone.norm_f.weight)
        for block, peer in zip(model.model.blocks, theirs.backbone.layers, strict=True):
            block.mixer.load_state_dict(weights_of(peer.mixer))
            block.residual.mixer_norm.weight.copy_(peer.norm.weight)
            block.residual.channel_norm.weight.fill_(1)
            for parameter in block.channel.parameters():
                parameter.zero_()
    return model


def test_outputs_and_gradients_of_the_mixer(theirs: MambaForCausalLM) -> None:
    peer, x = theirs.backbone.layers[0].mixer, torch.randn(2, 40, WIDTH, requires_grad=True)
    mixer = make_mixer(MIXER, Placement(width=WIDTH))
    mixer.load_state_dict(weights_of(peer))
    y, expected = mixer(x)[0], peer(x)
    close(y, expected, 1e-5)
    gradients = torch.autograd.grad(y.square().sum(), [x, mixer.log_rate, mixer.step_bias, mixer.convolution])
    wanted = torch.autograd.grad(expected.square().sum(), [x, peer.A_log, peer.dt_proj.bias, peer.conv1d.weight])
    close(gradients, [wanted[0], wanted[1].T, wanted[2], wanted[3][:, 0]], 1e-5)


def test_logits(theirs: MambaForCausalLM, ours: ParibusForCausalLM) -> None:
    ids = torch.randint(3, VOCABULARY, (2, 40))
    close(ours(ids).logits, theirs(ids).logits, 1e-5)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_the_same_text_is_generated(
    theirs: MambaForCausalLM, ours: ParibusForCausalLM, settings: dict[str, int]
) -> None:
    ids = torch.randint(3, VOCABULARY, (2, 9))
    asked = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, **settings}
    text = ours.generate(ids, **asked)
    assert len(text[:, 9:].unique()) > 3
    assert torch.equal(text, theirs.generate(ids, **asked))
