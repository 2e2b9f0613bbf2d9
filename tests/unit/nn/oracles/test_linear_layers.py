"""TNL's preset "minimax" beside transformers' own lightning attention with the same weights."""

from __future__ import annotations

import torch
from transformers.models.minimax.configuration_minimax import MiniMaxConfig
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

from paribus.evaluation.contract.subjects import MIXER, agree, build, shake, tokens

B, T, D, H, K = 2, 70, 32, 4, 8


def test_the_preset_minimax_is_transformers_lightning_attention() -> None:
    config = MiniMaxConfig(
        hidden_size=D, num_attention_heads=H, num_hidden_layers=2, block_size=16, layer_types=["linear_attention"] * 2
    )
    theirs = MiniMaxLightningAttention(config, layer_idx=0)
    shake(theirs)
    # their slopes carry a factor 1 + 1e-5 - layer / (layers - 1), which ours leave out
    theirs.slope_rate = theirs.slope_rate / (1 + 1e-5)
    theirs.query_decay, theirs.key_decay, theirs.diagonal_decay = theirs.decay_factors(theirs.slope_rate)
    mixer = build(MIXER, "tnl", width=D, settings={"preset": "minimax", "num_heads": H})
    query, key, value = theirs.qkv_proj.weight.unflatten(0, (H, 3, K)).unbind(1)
    weights = {"query": query.flatten(0, 1), "key": key.flatten(0, 1), "value": value.flatten(0, 1)}
    weights |= {"gate": theirs.output_gate.weight, "norm": theirs.norm.weight, "output": theirs.out_proj.weight}
    mixer.load_state_dict({f"{name}.weight": weight.detach() for name, weight in weights.items()})
    x = tokens(B, T, width=D)
    with torch.no_grad():
        agree("tnl: minimax", mixer(x)[0], theirs.double()(x, (x, x), None)[0], 1e-5)
