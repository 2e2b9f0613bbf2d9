"""The attention model is Llama: transformers' own code gives the same logits with the same weights."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paribus.nn.config import ParibusConfig
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

LAYERS, WIDTH, INNER, VOCABULARY, HEADS = 3, 32, 48, 71, 4
RENAMED = {
    "model.embed_tokens": "model.embedding.table",
    "model.layers": "model.blocks",
    "self_attn.q_proj": "mixer.query",
    "self_attn.k_proj": "mixer.key",
    "self_attn.v_proj": "mixer.value",
    "self_attn.o_proj": "mixer.output",
    "input_layernorm": "residual.mixer_norm",
    "post_attention_layernorm": "residual.channel_norm",
    "mlp.gate_proj": "channel.gate",
    "mlp.up_proj": "channel.up",
    "mlp.down_proj": "channel.output",
    "lm_head": "head",
}


def llama(queries_per_key: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // queries_per_key,
        rms_norm_eps=1e-6,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def ours(theirs: LlamaForCausalLM, queries_per_key: int) -> ParibusForCausalLM:
    mixer = {"name": "attention", "num_heads": HEADS, "queries_per_key": queries_per_key}
    channel = {"name": "glu", "expansion": INNER / WIDTH}
    config = ParibusConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        blocks={"main": {"mixer": mixer, "channel": channel}},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = ParibusForCausalLM(config).eval()
    weights = {}
    for name, value in theirs.state_dict().items():
        for before, after in RENAMED.items():
            name = name.replace(before, after)
        weights[name] = value
    model.load_state_dict(weights, strict=True)
    return model


@pytest.mark.parametrize("queries_per_key", [1, 2, 4])
def test_logits_and_loss_equal_llamas(queries_per_key: int) -> None:
    theirs = llama(queries_per_key)
    model = ours(theirs, queries_per_key)
    ids = torch.randint(3, VOCABULARY, (2, 40))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    for settings in ({}, {"attention_mask": mask}):
        got, expected = model(ids, **settings).logits, theirs(ids, **settings).logits
        real = mask.bool() if settings else slice(None)
        torch.testing.assert_close(got[real], expected[real], rtol=1e-5, atol=1e-5)
    labels = ids.masked_fill(mask == 0, -100)
    torch.testing.assert_close(model(ids, labels=labels).loss, theirs(ids, labels=labels).loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_the_same_text_is_generated(settings: dict[str, int]) -> None:
    theirs = llama(2).double()
    model = ours(theirs, 2).double()
    ids = torch.randint(3, VOCABULARY, (2, 9))
    asked = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, **settings}
    assert torch.equal(model.generate(ids, **asked), theirs.generate(ids, **asked))
