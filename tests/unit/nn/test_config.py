"""The architecture's settings: strict, checked when made, unchanged on the way through JSON and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from paribus.nn.backbone import on_meta, parameter_count
from paribus.nn.config import ParibusConfig
from paribus.nn.model_settings import read_model_config
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

SMALL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 16,
    "num_hidden_layers": 5,
    "max_position_embeddings": 32,
    "blocks": {
        "local": {"mixer": {"name": "attention", "window": 4}, "channel": {"name": "mlp", "expansion": 2}},
        "global": {
            "mixer": {"name": "attention", "preset": "multi_query"},
            "channel": {"name": "glu"},
            "norm": "layer_norm",
        },
    },
    "layout": ["local", "local", "global"],
}


def with_block(**change: Any) -> dict[str, Any]:
    return {**SMALL, "blocks": {"local": SMALL["blocks"]["local"] | change, "global": SMALL["blocks"]["global"]}}


def test_the_layout_repeats() -> None:
    assert ParibusConfig(**SMALL).layer_blocks() == ["local", "local", "global", "local", "local"]


def test_the_same_through_json_and_files(tmp_path: Path) -> None:
    config = ParibusConfig(**SMALL, tie_word_embeddings=True)
    read = read_model_config(json.loads(json.dumps(SMALL | {"tie_word_embeddings": True})))
    assert read.to_dict() == config.to_dict()
    ParibusForCausalLM(config).save_pretrained(tmp_path)
    loaded = ParibusConfig.from_pretrained(tmp_path)
    for key in (*SMALL, "tie_word_embeddings", "causal", "initialization", "bos_token_id", "pad_token_id"):
        assert getattr(loaded, key) == getattr(config, key), key
    loaded.save_pretrained(tmp_path / "again")
    assert ParibusConfig.from_pretrained(tmp_path / "again").to_dict() == loaded.to_dict()


def test_the_default_config_is_whole() -> None:
    assert read_model_config({}).to_dict() == ParibusConfig().to_dict()
    assert ParibusConfig.from_dict(ParibusConfig().to_dict()).to_dict() == ParibusConfig().to_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hiden_size": 8}, r"model: unknown key 'hiden_size'; did you mean 'hidden_size'\?"),
        ({"transformers_keys": 8}, "model: unknown key 'transformers_keys'"),
        ({"hidden_size": 0}, "model: hidden_size is 0; a whole number of at least 1 is needed"),
        ({"num_hidden_layers": 2.5}, "model: num_hidden_layers is 2.5"),
        ({"vocab_size": True}, "model: vocab_size is True"),
        ({"layout": []}, "model: layout is empty"),
        ({"layout": [1]}, r"model: layout is \[1\]; a list of names of blocks is needed"),
        ({"layout": None}, "model: layout is None; a list of names"),
        ({"blocks": ["local"]}, r"model: blocks is \['local'\]; an object of blocks by name is needed"),
        ({"blocks": {"main": "attention"}}, "block 'main': expected an object with keys, got 'attention'"),
        ({"norm": 5}, "model: norm is 5; a name is needed"),
        ({"position": None}, "model: position is None; a name is needed"),
        ({"initialization": ["normal"]}, r"model: initialization is \['normal'\]; a name is needed"),
        ({"causal": "no"}, "model: causal is 'no'; true or false is needed"),
        ({"tie_word_embeddings": 1}, "model: tie_word_embeddings is 1; true or false is needed"),
        ({"tie_word_embeddings": True, "initialization": "mup"}, "tie_word_embeddings must be false"),
        ({"bos_token_id": "x"}, "model: bos_token_id is 'x'; the number of a token, or null, is needed"),
        ({"eos_token_id": [1, 2.5]}, r"model: eos_token_id is \[1, 2.5\]; the number of a token"),
        ({"pad_token_id": True}, "model: pad_token_id is True; the number of a token"),
        ({"embedding": {"rank": -1}}, "embedding: rank is -1"),
        (with_block(dropout=1.0), "block 'local': dropout is 1.0; 0 or more and less than 1 is needed"),
        ({**SMALL, "layout": ["lokal"]}, r"model: layout names the block 'lokal'; did you mean 'local'\?"),
        (with_block(mixr={}), r"block 'local': unknown key 'mixr'; did you mean 'mixer'\?"),
        (with_block(mixer="attention"), "block 'local': mixer is 'attention'; an object with keys is needed"),
        (
            {**SMALL, "blocks": {"local": {"mixer": {"name": "attention"}}}, "layout": ["local"]},
            "block 'local': missing key 'channel'",
        ),
    ],
)
def test_a_mistake_is_named_when_the_config_is_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_model_config(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SMALL, "norm": "rms"}, r"unknown norm 'rms'; did you mean 'rms_norm'\?"),
        ({**SMALL, "position": "lerned"}, r"model: unknown position 'lerned'; did you mean 'learned'\?"),
        (with_block(norm="rms"), r"block 'local': residual: unknown norm 'rms'; did you mean 'rms_norm'\?"),
        (
            with_block(mixer={"name": "atention"}),
            r"block 'local': mixer: unknown mixer 'atention'; did you mean 'attention'\?",
        ),
        (
            with_block(mixer={"name": "attention", "num_head": 2}),
            r"block 'local': mixer: attention: unknown key 'num_head'; did you mean 'num_heads'\?",
        ),
        (with_block(mixer={"name": "attention", "num_heads": 3}), "width 16 is not divisible by num_heads 3"),
        (with_block(channel={"name": "glu", "expansion": 0.0}), "block 'local': channel: expansion 0.0 of width 16"),
        ({**SMALL, "initialization": "fanin"}, r"unknown initialization 'fanin'; did you mean 'fan_in'\?"),
        ({**SMALL, "causal": False}, "causal is false; the task causal_lm needs true"),
    ],
)
def test_a_mistake_inside_a_block_is_named_when_the_model_is_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParibusForCausalLM(read_model_config(settings))


def test_parameters_are_counted_without_memory() -> None:
    for tied in (False, True):
        config = ParibusConfig(**SMALL, tie_word_embeddings=tied)
        real = ParibusForCausalLM(config)
        assert parameter_count(on_meta(config, ParibusForCausalLM)) == parameter_count(real)
        assert (parameter_count(real) - 256 * 16 * (1 if tied else 2)) == sum(
            p.numel() for p in [*real.model.blocks.parameters(), *real.model.norm.parameters()]
        )


def test_tokens_may_be_missing_or_several() -> None:
    config = ParibusConfig(**SMALL, bos_token_id=None, eos_token_id=[3, 4], pad_token_id=None)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, [3, 4], None)


def test_the_callers_blocks_stay_as_they_are() -> None:
    blocks = {"main": {"mixer": {"name": "attention"}, "channel": None}}
    config = ParibusConfig(blocks=blocks)
    config.blocks["main"]["norm"] = "layer_norm"
    assert "norm" not in blocks["main"]


def test_keys_of_transformers_itself_pass() -> None:
    assert ParibusConfig(**SMALL, dtype="bfloat16", architectures=["X"]).dtype == torch.bfloat16
