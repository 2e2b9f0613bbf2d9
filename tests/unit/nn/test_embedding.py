"""Embeddings: tied, in factors, scaled, and all of it at once; through files, and with a vocabulary that grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paribus.nn.backbone import ParibusModel, on_meta, parameter_count
from paribus.nn.config import ParibusConfig
from paribus.nn.embedding import Embedding, EmbeddingConfig
from paribus.nn.initialization import INITIALIZATIONS, initialize
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

D, RANK, VOCAB = 16, 6, 40
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TABLE, HEAD = "model.embedding.table.weight", "head.weight"

ALL = pytest.mark.parametrize(
    ("tied", "rank", "scale"),
    [(tied, rank, scale) for tied in (False, True) for rank in (0, RANK) for scale in ("none", "sqrt_width")],
)


def made(tied: bool, rank: int, scale: str, seed: int = 0, **keys: Any) -> ParibusForCausalLM:
    block = {"mixer": {"name": "attention"}, "channel": None}
    config = ParibusConfig(
        vocab_size=VOCAB,
        hidden_size=D,
        num_hidden_layers=1,
        max_position_embeddings=32,
        blocks={"main": block},
        embedding={"rank": rank, "scale": scale},
        tie_word_embeddings=tied,
        **TOKENS,
        **keys,
    )
    model = ParibusForCausalLM(config)
    initialize(model, seed, config.initialization)
    return model.eval()


def ids() -> Tensor:
    return torch.randint(3, VOCAB, (2, 9))


def logits_by_hand(model: ParibusForCausalLM, x: Tensor) -> Tensor:
    """What the head makes of the last hidden states."""
    weights = model.state_dict()
    if "reduction.weight" in weights:
        x = x @ weights["reduction.weight"].T
    return x @ weights[HEAD].T


@pytest.mark.parametrize("rank", [0, 1, RANK, 40])
@pytest.mark.parametrize("scale", ["none", "sqrt_width"])
def test_the_equation(rank: int, scale: str) -> None:
    embedding = Embedding(VOCAB, D, EmbeddingConfig(rank, scale))  # type: ignore[arg-type]
    initialize(embedding, 0)
    embedding.double()
    tokens = ids()
    one_hot = nn.functional.one_hot(tokens, VOCAB).double()
    expected = one_hot @ embedding.table.weight
    if rank:
        assert embedding.up is not None and embedding.table.weight.shape == (VOCAB, rank)
        expected = expected @ embedding.up.weight.T
    expected = expected * (D**0.5 if scale == "sqrt_width" else 1)
    got = embedding(tokens)
    assert got.shape == (2, 9, D)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for parameter in embedding.parameters():
        pair = [torch.autograd.grad(y.square().sum(), parameter, retain_graph=True)[0] for y in (got, expected)]
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)


@ALL
def test_the_model_reads_and_writes_with_it(tied: bool, rank: int, scale: str) -> None:
    model, tokens = made(tied, rank, scale), ids()
    found = model(tokens, output_hidden_states=True)
    torch.testing.assert_close(found.hidden_states[0], model.model.embedding(tokens))
    torch.testing.assert_close(found.logits, logits_by_hand(model, found.hidden_states[-1]))
    again = model(inputs_embeds=model.model.embedding(tokens)).logits
    assert torch.equal(again, found.logits)
    assert (model.reduction is not None) == (tied and rank > 0)


@ALL
def test_parameters_counted_by_hand(tied: bool, rank: int, scale: str) -> None:
    model = made(tied, rank, scale)
    table = VOCAB * (rank or D)
    factors = rank * D * (2 if tied else 1)  # to the width, and back to the table that head and embedding share
    head = 0 if tied else VOCAB * D
    rest = 4 * D * D + 2 * D  # attention, the norm before it and the last one
    assert parameter_count(model) == table + factors + head + rest
    assert parameter_count(on_meta(model.config, ParibusForCausalLM)) == parameter_count(model)


@pytest.mark.parametrize("rank", [0, RANK])
def test_gradients_of_a_tied_table_add_up(rank: int) -> None:
    """Reading and writing each give a gradient; an untied model with equal values has them apart."""
    tied, tokens = made(True, rank, "sqrt_width").double(), ids()
    apart = ParibusForCausalLM(tied.config)
    apart.load_state_dict(tied.state_dict())
    apart.double()
    apart.head.weight = nn.Parameter(tied.head.weight.detach().clone())
    for model in (tied, apart):
        model.train()(tokens, labels=tokens).loss.backward()
    one, other = apart.model.embedding.table.weight.grad, apart.head.weight.grad
    assert one is not None and one.any() and other is not None and other.any()
    torch.testing.assert_close(tied.model.embedding.table.weight.grad, one + other, rtol=1e-10, atol=1e-12)
    assert tied.head.weight is tied.model.embedding.table.weight


@ALL
def test_through_files(tied: bool, rank: int, scale: str, tmp_path: Path) -> None:
    model, tokens = made(tied, rank, scale), ids()
    model.save_pretrained(tmp_path)
    loaded, info = ParibusForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert (loaded.head.weight is loaded.model.embedding.table.weight) == tied
    assert loaded.config.embedding == {"rank": rank, "scale": scale}
    backbone = ParibusModel.from_pretrained(tmp_path)
    assert torch.equal(backbone(tokens).last_hidden_state, model.model(tokens).last_hidden_state)


@ALL
@pytest.mark.parametrize("size", [VOCAB + 7, VOCAB - 7])
def test_the_vocabulary_is_resized(tied: bool, rank: int, scale: str, size: int, tmp_path: Path) -> None:
    model, tokens = made(tied, rank, scale), ids().clamp(max=VOCAB - 8)
    before = model(tokens).logits.detach()
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size
    assert model.get_input_embeddings().weight.shape == (size, rank or D)
    assert model.get_output_embeddings().weight.shape == (size, rank if tied and rank else D)
    assert (model.head.weight is model.model.embedding.table.weight) == tied
    after = model(tokens).logits.detach()
    kept = min(size, VOCAB)
    assert after.shape[-1] == size and after.isfinite().all()
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    model.save_pretrained(tmp_path)
    assert torch.equal(ParibusForCausalLM.from_pretrained(tmp_path)(tokens).logits, after)
    model.train()(tokens, labels=tokens).loss.backward()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rank", [0, RANK])
def test_new_tokens_begin_at_the_mean(tied: bool, rank: int) -> None:
    model = made(tied, rank, "none")
    model.resize_token_embeddings(VOCAB + 3)
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(table[VOCAB:], table[:VOCAB].mean(0).expand(3, -1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("rank", [0, RANK])
def test_tables_are_got_and_set(rank: int) -> None:
    model, tokens = made(False, rank, "none"), ids()
    assert model.get_input_embeddings() is model.model.embedding.table
    assert model.model.get_input_embeddings() is model.model.embedding.table
    assert model.get_output_embeddings() is model.head
    table, head = nn.Embedding(VOCAB, rank or D), nn.Linear(D, VOCAB, bias=False)
    model.set_input_embeddings(table)
    model.set_output_embeddings(head)
    found = model(tokens, output_hidden_states=True)
    assert model.model.embedding.table is table and model.head is head
    torch.testing.assert_close(found.logits, found.hidden_states[-1] @ head.weight.T)
    vectors = table(tokens) if model.model.embedding.up is None else model.model.embedding.up(table(tokens))
    torch.testing.assert_close(found.hidden_states[0], vectors)


@pytest.mark.parametrize("rule", sorted(set(INITIALIZATIONS) - {"mup"}))
@pytest.mark.parametrize("tied", [False, True])
def test_factors_begin_finite_by_every_rule(rule: str, tied: bool) -> None:
    model = made(tied, RANK, "none", initialization=rule)
    assert all(parameter.isfinite().all() and parameter.any() for parameter in model.model.embedding.parameters())
    assert model(ids()).logits.isfinite().all()


@pytest.mark.parametrize("rank", [0, RANK])
@pytest.mark.parametrize("scale", ["none", "sqrt_width"])
def test_logits_begin_at_one(rank: int, scale: str) -> None:
    """A normed hidden state gives logits of about 1, tied or not, in factors or not."""
    for tied in (False, True):
        spread = torch.stack([made(tied, rank, scale, seed)(ids()).logits for seed in range(4)]).std()
        assert 0.5 < spread < 2, (tied, spread)


def test_a_tied_model_generates() -> None:
    model = made(True, RANK, "sqrt_width")
    prompt = ids()[:, :4]
    with_cache, without = (
        model.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    )
    assert with_cache.shape[1] > 4 and torch.equal(with_cache, without)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, r"embedding: rank is -1; 0 \(no factors\) or more is needed"),
        ({"rank": 2.5}, "model: embedding: rank is 2.5; int is needed"),
        ({"rank": True}, "model: embedding: rank is True"),
        ({"scale": "width"}, "model: embedding: scale is 'width'; allowed: 'none', 'sqrt_width'"),
        ({"ranks": 3}, r"model: embedding: unknown key 'ranks'; did you mean 'rank'\?"),
        ("big", "model: embedding: expected an object with keys, got 'big'"),
    ],
)
def test_mistakes(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParibusConfig(embedding=settings)
