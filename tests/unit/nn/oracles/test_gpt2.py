"""Attention without positions, a perceptron and layer norms are GPT-2: transformers' code gives the same logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from paribus.nn.config import ParibusConfig
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

LAYERS, WIDTH, VOCABULARY, HEADS = 3, 32, 71, 4


def gpt2() -> GPT2LMHeadModel:
    """Random weights; biases, which this library does without, are zero."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        activation_function="gelu",
        layer_norm_epsilon=1e-6,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def translated(theirs: GPT2LMHeadModel) -> dict[str, Tensor]:
    """Our names; GPT-2 keeps its maps transposed, and queries, keys and values in one."""
    weights = {
        "model.embedding.table.weight": theirs.transformer.wte.weight,
        "model.norm.weight": theirs.transformer.ln_f.weight,
        "head.weight": theirs.lm_head.weight,
    }
    for layer, block in enumerate(theirs.transformer.h):
        maps = {
            "residual.mixer_norm": block.ln_1.weight,
            "mixer.output": block.attn.c_proj.weight.T,
            "residual.channel_norm": block.ln_2.weight,
            "channel.up": block.mlp.c_fc.weight.T,
            "channel.output": block.mlp.c_proj.weight.T,
        }
        parts = block.attn.c_attn.weight.T.chunk(3)
        maps.update(zip(("mixer.query", "mixer.key", "mixer.value"), parts, strict=True))
        weights.update({f"model.blocks.{layer}.{name}.weight": weight for name, weight in maps.items()})
    return weights


def ours(norm: str) -> ParibusForCausalLM:
    block = {
        "mixer": {"name": "attention", "num_heads": HEADS, "position": "none"},
        "channel": {"name": "mlp", "expansion": 4.0, "activation": "gelu"},
        "norm": "layer_norm",
    }
    config = ParibusConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, blocks={"main": block}, norm=norm
    )
    return ParibusForCausalLM(config).double().eval()


def test_logits_and_hidden_states_equal_gpt2s() -> None:
    theirs, model = gpt2(), ours("layer_norm")
    model.load_state_dict(translated(theirs), strict=True)
    ids = torch.randint(3, VOCABULARY, (2, 40))
    embedded = theirs.transformer.wte(ids) + theirs.transformer.wpe(torch.arange(40))
    got = model(inputs_embeds=embedded, output_hidden_states=True)
    expected = theirs(ids, output_hidden_states=True)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-10, atol=1e-10)
    for one, other in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_another_last_norm_is_another_model() -> None:
    theirs, model = gpt2(), ours("rms_norm")
    model.load_state_dict(translated(theirs), strict=True)
    ids = torch.randint(3, VOCABULARY, (1, 9))
    embedded = theirs.transformer.wte(ids) + theirs.transformer.wpe(torch.arange(9))
    assert not torch.allclose(model(inputs_embeds=embedded).logits, theirs(ids).logits, atol=1e-3)
    with pytest.raises(ValueError, match=r"unknown norm 'layer_nrm'; did you mean 'layer_norm'\?"):
        ours("layer_nrm")
