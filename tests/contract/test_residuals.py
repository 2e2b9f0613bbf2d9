"""Every residual scheme makes a whole model: it packs, pads, decodes, is saved and saves memory like any other."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.evaluation.contract.subjects import shake
from paribus.nn.component import RESIDUALS
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.norm import NORMS
from paribus.nn.residual import Residual
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

VOCABULARY, LENGTH = 61, 11
CONDITION = torch.randn(1, 32, generator=torch.Generator().manual_seed(4))
"""What every row is made for, the same whatever the rows are cut into; a scheme may read it or not."""


def settings(name: str, norm: str = "rms_norm", dropout: float = 0.0) -> dict[str, Any]:
    """A block with two branches and one without a channel mixer, in turn."""
    same = {"residual": {"name": name}, "norm": norm, "dropout": dropout}
    return {
        "both": {"mixer": {"name": "attention"}, "channel": {"name": "glu"}, **same},
        "one": {"mixer": {"name": "gla"}, "channel": None, **same},
    }


def make(name: str, **changes: Any) -> ParibusForCausalLM:
    config = ParibusConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=3,
        max_position_embeddings=32,
        blocks=settings(name, **changes),
        layout=["both", "one"],
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = ParibusForCausalLM(config)
    initialize(model, seed=1)
    shake(model)  # a scheme that starts as the identity would hide what its branches do
    return conditioned(model.double().eval())


made = functools.cache(make)


def conditioned(model: ParibusForCausalLM) -> ParibusForCausalLM:
    """The model, its backbone given a condition whenever it is called."""

    def give(backbone: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        rows = len(named["input_ids"])
        return arguments, {**named, "condition": CONDITION.expand(rows, -1)}

    model.model.register_forward_pre_hook(give, with_kwargs=True)
    return model


@pytest.fixture(params=RESIDUALS.names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(3, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def gradients(model: ParibusForCausalLM, tokens: Tensor, **options: Any) -> dict[str, Tensor]:
    """Of the loss of `tokens`, the first three of which are padding in one row; by the parameter's name."""
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    torch.manual_seed(2)
    model.zero_grad()
    model(tokens, attention_mask=mask, labels=tokens, **options).loss.backward()
    found = {}
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        found[key] = parameter.grad.clone()
    return found


@pytest.mark.parametrize("norm", NORMS)
def test_every_parameter_learns_with_every_norm(name: str, norm: str, tokens: Tensor) -> None:
    for key, gradient in gradients(make(name, norm=norm).train(), tokens).items():
        assert gradient.isfinite().all() and gradient.any(), key


def test_documents_in_one_row_are_read_alone(name: str, tokens: Tensor) -> None:
    model = made(name)
    packed, segments = tokens.reshape(1, 2 * LENGTH), torch.tensor([[1] * LENGTH + [2] * LENGTH])
    together = model(packed, attention_mask=segments).logits
    close(together.reshape(2, LENGTH, -1), model(tokens).logits)


def test_padding_is_not_read(name: str, tokens: Tensor) -> None:
    model = made(name)
    padded, mask = tokens.clone(), torch.ones_like(tokens)
    padded[0, :4] = mask[0, :4] = 0
    close(model(padded, attention_mask=mask).logits[:1, 4:], model(tokens[:1, 4:]).logits)


def test_token_by_token_is_the_whole(name: str, tokens: Tensor) -> None:
    model, cache, outputs = made(name), None, []
    for token in tokens.split(1, dim=1):
        output = model(token, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        outputs.append(output.logits)
    close(torch.cat(outputs, 1), model(tokens).logits)


def test_generation_with_a_cache_changes_nothing(name: str, tokens: Tensor) -> None:
    asked = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    cached, bare = (made(name).generate(tokens, use_cache=cache, **asked) for cache in (True, False))
    assert len(cached[:, LENGTH:].unique()) > 3, "the sample is too poor to prove anything"
    assert torch.equal(cached, bare)


def test_saved_and_loaded(name: str, tokens: Tensor, tmp_path: Path) -> None:
    model = made(name)
    model.save_pretrained(tmp_path)
    loaded = conditioned(ParibusForCausalLM.from_pretrained(tmp_path))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    close(loaded(tokens).logits, model(tokens).logits)


def test_schemes_read_the_condition_that_say_so(name: str, tokens: Tensor) -> None:
    model = copy.deepcopy(made(name))
    model.model._forward_pre_hooks.clear()
    with_condition, without = made(name)(tokens).logits, model(tokens).logits
    assert torch.equal(with_condition, without) != RESIDUALS.component(name, Residual).reads_condition


def test_checkpointing_gives_equal_gradients(name: str, tokens: Tensor) -> None:
    plain = make(name, dropout=0.2).train()
    saving = copy.deepcopy(plain)
    saving.activation_checkpointing_enable()
    expected = gradients(plain, tokens)
    for key, gradient in gradients(saving, tokens).items():
        close(gradient, expected[key])


def test_hidden_states_change_nothing(name: str, tokens: Tensor) -> None:
    model = made(name)
    output = model(tokens, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    assert all(states.shape == (2, LENGTH, 32) for states in output.hidden_states)
    close(model.head(output.hidden_states[-1]), output.logits)
    expected = gradients(model, tokens)
    for key, gradient in gradients(model, tokens, output_hidden_states=True).items():
        close(gradient, expected[key])


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_near(name: str, autocast: bool, tokens: Tensor) -> None:
    model = make(name)
    initialize(model, seed=1)  # without the noise, which makes long sums of large numbers
    exact = model(tokens).logits
    model = model.float() if autocast else model.bfloat16()
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(tokens, labels=tokens)
    output.loss.backward()
    assert (output.logits - exact).norm() <= 0.05 * exact.norm()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
