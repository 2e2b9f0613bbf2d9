"""Every token mixer generates alike: with and without cache, padded, continued, in chunks, saved and loaded."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.evaluation.contract.subjects import shake
from paribus.nn.backbone import parameter_count
from paribus.nn.component import MIXERS
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

NAMES = (*MIXERS.names(), "hybrid")
NEW = 10
"""Tokens to generate."""


@functools.cache
def made(name: str, tied: bool) -> ParibusForCausalLM:
    mixers = MIXERS.names() if name == "hybrid" else [name]
    config = ParibusConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=max(2, len(mixers)),
        max_position_embeddings=48,
        blocks={mixer: {"mixer": {"name": mixer}, "channel": {"name": "glu"}} for mixer in mixers},
        layout=mixers,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = ParibusForCausalLM(config)
    initialize(model, seed=1)
    shake(model)  # a fresh model repeats one token for ever, which would hide mistakes
    return model.double().eval()


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> ParibusForCausalLM:
    return made(request.param, tied=False)


@pytest.fixture
def prompt() -> Tensor:
    return torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))


def generate(model: ParibusForCausalLM, ids: Tensor | None, **settings: Any) -> Tensor:
    """The whole rows, never shortened by the end-of-text token."""
    torch.manual_seed(5)
    asked = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW} | settings
    return model.generate(ids, **asked)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_sample": True, "temperature": 1.5},
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 3},
        {"do_sample": True, "num_return_sequences": 3},
    ],
    ids=["greedy", "sampling", "beams", "returned-beams", "returned-samples"],
)
def test_the_cache_changes_nothing(model: ParibusForCausalLM, prompt: Tensor, settings: dict[str, Any]) -> None:
    cached = generate(model, prompt, use_cache=True, **settings)
    assert cached.shape == (2 * settings.get("num_return_sequences", 1), 9 + NEW)
    assert len(cached[:, 9:].unique()) > 3, "the sample is too poor to prove anything"
    assert torch.equal(cached, generate(model, prompt, use_cache=False, **settings))


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_left_padded_rows_answer_as_alone(model: ParibusForCausalLM, prompt: Tensor, settings: dict[str, Any]) -> None:
    padded, mask = prompt.clone(), torch.ones_like(prompt)
    padded[0, :4] = mask[0, :4] = 0
    together = generate(model, padded, attention_mask=mask, **settings)
    assert torch.equal(together[0, 4:], generate(model, prompt[:1, 4:], **settings)[0])
    assert torch.equal(together[1], generate(model, prompt[1:], **settings)[0])


def test_a_returned_cache_continues(model: ParibusForCausalLM, prompt: Tensor) -> None:
    whole = generate(model, prompt)
    half = generate(model, prompt, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True)
    rest = generate(
        model,
        half.sequences,
        attention_mask=torch.ones_like(half.sequences),  # else generated padding tokens are masked
        past_key_values=half.past_key_values,
        max_new_tokens=NEW - 4,
        min_new_tokens=NEW - 4,
    )
    assert torch.equal(rest, whole)


def test_prefill_in_chunks_changes_nothing(model: ParibusForCausalLM, prompt: Tensor) -> None:
    assert torch.equal(generate(model, prompt, prefill_chunk_size=4), generate(model, prompt))


def test_embeddings_in_place_of_ids(model: ParibusForCausalLM, prompt: Tensor) -> None:
    embeddings = model.get_input_embeddings()(prompt)
    close(model(inputs_embeds=embeddings).logits, model(prompt).logits)
    assert torch.equal(generate(model, None, inputs_embeds=embeddings), generate(model, prompt)[:, 9:])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(prompt, inputs_embeds=embeddings)


def test_checkpointing_gives_equal_gradients(model: ParibusForCausalLM, prompt: Tensor) -> None:
    mask = torch.ones_like(prompt)
    mask[0, :3] = 0
    plain = copy.deepcopy(model).train()
    saving = copy.deepcopy(model).train()
    saving.activation_checkpointing_enable()
    losses = [one(prompt, attention_mask=mask, labels=prompt).loss for one in (plain, saving)]
    for loss in losses:
        loss.backward()
    close(losses[1], losses[0])
    for a, b in zip(saving.parameters(), plain.parameters(), strict=True):
        close(a.grad, b.grad)


def test_hidden_states_are_given(model: ParibusForCausalLM, prompt: Tensor) -> None:
    output = model(prompt, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    close(output.hidden_states[0], model.get_input_embeddings()(prompt))
    close(model.head(output.hidden_states[-1]), output.logits)
    assert model(prompt).hidden_states is None
    assert all(map(torch.equal, model(prompt, return_dict=False), (output.logits,)))


def test_only_the_logits_asked_for(model: ParibusForCausalLM, prompt: Tensor) -> None:
    full = model(prompt).logits
    close(model(prompt, logits_to_keep=2).logits, full[:, -2:])
    close(model(prompt, logits_to_keep=torch.tensor([0, 5])).logits, full[:, [0, 5]])
    output = model(prompt, labels=prompt, return_logits=False)
    assert output.logits is None
    close(output.loss, torch.nn.functional.cross_entropy(full[:, :-1].flatten(0, 1), prompt[:, 1:].flatten()))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded(name: str, tied: bool, prompt: Tensor, tmp_path: Path) -> None:
    model = made(name, tied)
    shared = model.head.weight is model.get_input_embeddings().weight
    assert shared == tied
    model.save_pretrained(tmp_path)
    loaded = ParibusForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float64
    assert (loaded.head.weight is loaded.get_input_embeddings().weight) == tied
    assert parameter_count(loaded) == parameter_count(model)
    close(loaded(prompt).logits, model(prompt).logits)  # mapped weights lie elsewhere, which may cost a bit
    assert torch.equal(generate(loaded, prompt), generate(model, prompt))


def test_what_states_cannot_do_is_refused(model: ParibusForCausalLM, prompt: Tensor) -> None:
    with pytest.raises(ValueError, match="cache_implementation is 'static'; states allow only 'dynamic'"):
        generate(model, prompt, cache_implementation="static")
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        generate(model, prompt[:1], assistant_model=copy.deepcopy(model))


def test_packed_documents_learn_alone(model: ParibusForCausalLM, prompt: Tensor) -> None:
    packed, segments = prompt.reshape(1, 18), torch.tensor([[1] * 9 + [2] * 9])
    close(model(packed, attention_mask=segments).logits.reshape(2, 9, -1), model(prompt).logits)
