"""Every channel mixer keeps every promise of its contract, and generates alike with and without a cache."""

from __future__ import annotations

import pytest
import torch

from paribus.evaluation.contract import channel_checks
from paribus.evaluation.contract.subjects import shake
from paribus.nn.component import CHANNELS
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.tasks.causal_lm import ParibusForCausalLM


@pytest.mark.parametrize(
    ("name", "check"), [(name, check) for name in CHANNELS.names() for check in channel_checks(name)]
)
def test_channel(name: str, check: str) -> None:
    channel_checks(name)[check](name)


@pytest.mark.parametrize("name", CHANNELS.names())
def test_the_cache_changes_nothing(name: str) -> None:
    block = {"mixer": {"name": "short_convolution"}, "channel": {"name": name}}
    model = ParibusForCausalLM(
        ParibusConfig(
            vocab_size=61,
            hidden_size=32,
            num_hidden_layers=2,
            max_position_embeddings=48,
            blocks={"main": block},
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    initialize(model, seed=1)
    shake(model)  # a fresh model repeats one token for ever, which would hide mistakes
    model = model.double().eval()
    prompt = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    prompt[0, :4] = 0
    asked = {"attention_mask": (prompt != 0).long(), "num_beams": 3, "max_new_tokens": 8, "min_new_tokens": 8}
    cached, plain = (model.generate(prompt, use_cache=cache, **asked) for cache in (True, False))
    assert len(cached[:, 9:].unique()) > 3, "the sample is too poor to prove anything"
    assert torch.equal(cached, plain)
