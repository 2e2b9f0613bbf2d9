"""Attention layers of other models in transformers answer as ours do with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV2Config,
    DiffLlamaConfig,
    GPTNeoXConfig,
    GptOssConfig,
    MptConfig,
    Qwen3Config,
    Qwen3NextConfig,
    T5Config,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention, DiffLlamaRotaryEmbedding
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention, GPTNeoXRotaryEmbedding
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention, GptOssRotaryEmbedding
from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention, Qwen3NextRotaryEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from paribus.nn.component import make_mixer
from paribus.nn.mixer import Placement
from paribus.nn.state import state_bytes

WIDTH, HEADS, LENGTH, LAYER = 32, 4, 24, 2
HEAD = WIDTH // HEADS
Pair = tuple[Callable[[Tensor], Tensor], nn.Module]
"""Their forward, and our mixer with their weights."""
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}


def settings(**more: Any) -> dict[str, Any]:
    """What the configs of all peers have in common."""
    return {
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYER + 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "attn_implementation": "eager",
        **more,
    }


def shaken(module: nn.Module) -> nn.Module:
    """In float64 with random weights, some way off from their initial values."""
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.nan_to_num_(0.0).clamp_(-2, 2).add_(torch.randn_like(parameter) * 0.3)
    return module


def seen(window: int = LENGTH) -> Tensor:
    """[T, T] bool: what a causal query sees."""
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().triu(1 - window)


def mask(window: int = LENGTH) -> Tensor:
    """[1, 1, T, T]: to add to scores."""
    return torch.zeros(LENGTH, LENGTH, dtype=torch.float64).masked_fill(~seen(window), -torch.inf)[None, None]


def angles(rotary: nn.Module) -> Any:
    """What their attention takes for its positions."""
    return rotary(torch.zeros(1, LENGTH, WIDTH, dtype=torch.float64), torch.arange(LENGTH)[None])


def mixer(weights: dict[str, Tensor], name: str, causal: bool = True, **chosen: Any) -> nn.Module:
    """Ours; `weights` are all that it has."""
    placement = Placement(width=WIDTH, layer=LAYER, num_layers=LAYER + 1, causal=causal)
    module = make_mixer({"name": name, **chosen}, placement).double()
    module.load_state_dict(weights, strict=True)
    return module


def projections(theirs: nn.Module) -> dict[str, Tensor]:
    return {f"{ours}.weight": getattr(theirs, name).weight for ours, name in PROJECTIONS.items()}


def qwen3() -> Pair:
    """Grouped queries; norms of queries and keys."""
    config = Qwen3Config(**settings(num_key_value_heads=2, head_dim=HEAD))
    theirs = shaken(Qwen3Attention(config, LAYER))
    weights = projections(theirs) | {"query_norm.weight": theirs.q_norm.weight, "key_norm.weight": theirs.k_norm.weight}
    where = angles(Qwen3RotaryEmbedding(config))
    ours = mixer(weights, "attention", num_heads=HEADS, queries_per_key=2, query_key_norm=True)
    return lambda x: theirs(x, where, mask())[0], ours


def qwen3_next() -> Pair:
    """A gate for each channel; their norms' weights are kept less one, and gates beside each head's queries."""
    config = Qwen3NextConfig(**settings(num_key_value_heads=HEADS, head_dim=HEAD, partial_rotary_factor=1.0))
    theirs = shaken(Qwen3NextAttention(config, LAYER))
    query, gate = theirs.q_proj.weight.unflatten(0, (HEADS, 2, HEAD)).unbind(1)
    weights = projections(theirs) | {
        "query.weight": query.flatten(0, 1),
        "gate.weight": gate.flatten(0, 1),
        "query_norm.weight": 1 + theirs.q_norm.weight,
        "key_norm.weight": 1 + theirs.k_norm.weight,
    }
    where = angles(Qwen3NextRotaryEmbedding(config))
    ours = mixer(weights, "attention", num_heads=HEADS, query_key_norm=True, output_gate="channel")
    return lambda x: theirs(x, where, mask())[0], ours


def gpt_oss(window: int = LENGTH) -> Pair:
    """A learned sink for each head."""
    config = GptOssConfig(**settings(num_key_value_heads=2, head_dim=HEAD))
    theirs = shaken(GptOssAttention(config, LAYER))
    where = angles(GptOssRotaryEmbedding(config))
    chosen = {"num_heads": HEADS, "queries_per_key": 2, "normaliser": "sink", "window": window % LENGTH}
    ours = mixer(projections(theirs) | {"sink": theirs.sinks}, "attention", **chosen)
    return lambda x: theirs(x, where, mask(window))[0], ours


def mpt() -> Pair:
    """ALiBi."""
    config = MptConfig(d_model=WIDTH, n_heads=HEADS)
    theirs = shaken(MptAttention(config, LAYER))
    query, key, value = theirs.Wqkv.weight.chunk(3)
    weights = {"query": query, "key": key, "value": value, "output": theirs.out_proj.weight}
    ours = mixer({f"{k}.weight": w for k, w in weights.items()}, "attention", num_heads=HEADS, position="alibi")
    bias = build_mpt_alibi_tensor(HEADS, LENGTH).double()
    return lambda x: theirs(x, bias, attention_mask=~seen()[None, None])[0], ours


def gpt_neox() -> Pair:
    """A quarter of the channels rotated; queries, keys and values of a head lie together."""
    rotary = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    config = GPTNeoXConfig(**settings(rope_parameters=rotary))
    theirs = shaken(GPTNeoXAttention(config, LAYER))
    parts = theirs.query_key_value.weight.unflatten(0, (HEADS, 3, HEAD)).unbind(1)
    weights = {name: part.flatten(0, 1) for name, part in zip(("query", "key", "value"), parts, strict=True)}
    weights["output"] = theirs.dense.weight
    ours = mixer({f"{k}.weight": w for k, w in weights.items()}, "attention", num_heads=HEADS, rotary_share=0.25)
    where = angles(GPTNeoXRotaryEmbedding(config))
    return lambda x: theirs(x, mask(), position_embeddings=where)[0], ours


def t5(causal: bool) -> Pair:
    """Biases by buckets of distances; their scores are not divided by √K."""
    buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 18}
    config = T5Config(d_model=WIDTH, d_kv=HEAD, num_heads=HEADS, is_decoder=causal, dropout_rate=0.0, **buckets)
    theirs = shaken(T5Attention(config, has_relative_attention_bias=True, layer_idx=LAYER))
    weights = {
        "query.weight": theirs.q.weight * HEAD**0.5,
        "key.weight": theirs.k.weight,
        "value.weight": theirs.v.weight,
        "output.weight": theirs.o.weight,
        "position_bias.table": theirs.relative_attention_bias.weight,
    }
    chosen = {"num_heads": HEADS, "position": "relative_bias", "num_buckets": 8, "max_distance": 18}
    return lambda x: theirs(x, mask=mask() if causal else None)[0], mixer(weights, "attention", causal, **chosen)


def diff_llama() -> Pair:
    """Differential attention; their heads lie first, second of all pairs, ours pair by pair."""
    config = DiffLlamaConfig(**settings(num_attention_heads=2 * HEADS, num_key_value_heads=2 * HEADS))
    theirs = shaken(DiffLlamaAttention(config, LAYER))

    def paired(weight: Tensor) -> Tensor:
        return weight.unflatten(0, (2, HEADS, HEAD // 2)).transpose(0, 1).flatten(0, 2)

    weights = {
        f"{name}.weight": paired(getattr(theirs, PROJECTIONS[name]).weight) for name in ("query", "key", "value")
    }
    weights["output.weight"] = theirs.o_proj.weight
    weights["lambda_query"] = torch.stack([theirs.lambda_q1, theirs.lambda_q2])
    weights["lambda_key"] = torch.stack([theirs.lambda_k1, theirs.lambda_k2])
    weights["norm.weight"] = torch.ones(HEAD)
    where = angles(DiffLlamaRotaryEmbedding(config))
    return lambda x: theirs(x, where, mask())[0], mixer(weights, "differential_attention", num_heads=HEADS)


def deepseek_v2(query_latent: int | None) -> Pair:
    """Latent attention; their rotary pairs are neighbours."""
    latent, rotary = 8, 4
    config = DeepseekV2Config(
        **settings(
            num_key_value_heads=HEADS,
            q_lora_rank=query_latent,
            kv_lora_rank=latent,
            qk_nope_head_dim=HEAD,
            qk_rope_head_dim=rotary,
            v_head_dim=HEAD,
        )
    )
    theirs = shaken(DeepseekV2Attention(config, LAYER))

    def halves(weight: Tensor) -> Tensor:
        return torch.cat([weight[..., 0::2, :], weight[..., 1::2, :]], -2)

    compressed, rotary_key = theirs.kv_a_proj_with_mqa.weight.split([latent, rotary])
    key, value = theirs.kv_b_proj.weight.unflatten(0, (HEADS, 2, HEAD)).unbind(1)
    query = (theirs.q_proj if query_latent is None else theirs.q_b_proj).weight.unflatten(0, (HEADS, HEAD + rotary))
    weights = {
        "latent.weight": compressed,
        "latent_norm.weight": theirs.kv_a_layernorm.weight,
        "rotary_key.weight": halves(rotary_key),
        "key.weight": key.flatten(0, 1),
        "value.weight": value.flatten(0, 1),
        "query.weight": torch.cat([query[:, :HEAD], halves(query[:, HEAD:])], 1).flatten(0, 1),
        "output.weight": theirs.o_proj.weight,
    }
    if query_latent is not None:
        weights["query_latent.weight"] = theirs.q_a_proj.weight
        weights["query_norm.weight"] = theirs.q_a_layernorm.weight
    where = angles(DeepseekV2RotaryEmbedding(config))
    chosen = {"num_heads": HEADS, "key_latent": latent / WIDTH, "query_latent": (query_latent or 0) / WIDTH}
    return lambda x: theirs(x, attention_mask=mask(), position_embeddings=where)[0], mixer(
        weights, "latent_attention", **chosen
    )


PEERS: dict[str, Callable[[], Pair]] = {
    "qwen3": qwen3,
    "qwen3_next": qwen3_next,
    "gpt_oss": gpt_oss,
    "gpt_oss_window": lambda: gpt_oss(5),
    "mpt": mpt,
    "gpt_neox": gpt_neox,
    "t5_decoder": lambda: t5(True),
    "t5_encoder": lambda: t5(False),
    "diff_llama": diff_llama,
    "deepseek_v2": lambda: deepseek_v2(12),
    "deepseek_v2_lite": lambda: deepseek_v2(None),
}


@pytest.mark.parametrize("name", PEERS)
def test_the_layer_answers_as_theirs(name: str) -> None:
    torch.manual_seed(0)
    theirs, ours = PEERS[name]()
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    expected, got = theirs(x), ours(x)[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * float(expected.detach().abs().max()))


def test_latent_attention_keeps_the_latent_and_one_rotated_key() -> None:
    placement, x = Placement(width=WIDTH), torch.randn(1, 50, WIDTH)
    kept = {
        name: state_bytes(make_mixer({"name": name}, placement)(x, keep_state=True)[1])
        for name in ("attention", "latent_attention")
    }
    marks = 2 * 8 * 50 + 2 * 8  # ids and positions of the tokens, and where the row stands
    assert kept["attention"] == 4 * 50 * 2 * WIDTH + marks
    assert kept["latent_attention"] == 4 * 50 * (WIDTH // 4 + HEAD // 2) + marks
