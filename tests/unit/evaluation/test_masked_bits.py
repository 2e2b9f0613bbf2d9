"""Bits of hidden tokens and pseudo-perplexity against loops, one token at a time; baselines against dictionaries."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paribus.data.batches import HeldOutDocument
from paribus.data.tokenizers import byte_tokenizer, encode
from paribus.evaluation import masked_bits as module
from paribus.evaluation.byte_neighbours import ByteNeighbours, hidden_byte_bits
from paribus.evaluation.masked_bits import (
    HiddenDocument,
    filled_text,
    hide,
    masked_document_bits,
    pseudo_perplexity,
    token_ends,
)
from paribus.nn.initialization import initialize
from paribus.nn.model_settings import read_model_config
from paribus.nn.tasks.masked_lm import ParibusForMaskedLM

MASK = 253
LENGTHS = (1, 7, 8, 9, 16, 17, 40, 23)
MIXERS = ["attention", "gla", "tnn", "mlp_mixer"]


def model(mixer: str = "attention") -> ParibusForMaskedLM:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 64, "causal": False}
    block = {"mixer": {"name": mixer}, "channel": {"name": "glu"}}
    found = ParibusForMaskedLM(read_model_config({**sizes, "blocks": {"main": block}, "task": {"name": "masked_lm"}}))
    initialize(found, seed=0)
    torch.nn.init.normal_(found.head.weight, std=0.5)  # so that tokens are not all alike
    return found


def documents() -> list[HeldOutDocument]:
    draw = np.random.default_rng(0)
    contents = [bytes(draw.integers(97, 123, size=length, dtype=np.uint8)) for length in LENGTHS]
    return [HeldOutDocument("text", np.frombuffer(content, dtype=np.uint8), content) for content in contents]


def hidden_documents() -> list[HiddenDocument]:
    return hide(documents(), byte_tokenizer())


@torch.no_grad()
def nats(model: ParibusForMaskedLM, tokens: list[int], hidden: list[int], asked: int) -> float:
    """-log p of one token of a window of which some are hidden."""
    shown = [MASK if place in hidden else token for place, token in enumerate(tokens)]
    logits = model(input_ids=torch.tensor([shown])).logits[0, asked].double()
    return -torch.log_softmax(logits, -1)[tokens[asked]].item()


def window_of(place: int, num_tokens: int, length: int) -> range:
    """That of a token: windows are side by side, the last one as long as the others."""
    start = place // length * length
    return range(max(0, min(start, num_tokens - length)), min(start + length, num_tokens))


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("length", [1, 8, 64])
def test_every_hidden_token_is_asked_once_in_its_own_window(mixer: str, length: int) -> None:
    one = model(mixer)
    found = masked_document_bits(one, hidden_documents(), length)
    for hidden, measured in zip(hidden_documents(), found, strict=True):
        tokens, places = hidden.document.tokens.tolist(), np.flatnonzero(hidden.hidden).tolist()
        expected = 0.0
        for place in places:
            window = window_of(place, len(tokens), length)
            inside = [other - window.start for other in places if other in window]
            expected += nats(one, [tokens[t] for t in window], inside, place - window.start)
        assert measured.num_bytes == len(places) == max(1, round(0.15 * len(tokens)))
        assert measured.bits == pytest.approx(expected / math.log(2), rel=1e-4)


@pytest.mark.parametrize("length", [8, 64])
def test_pseudo_perplexity_hides_each_token_alone(length: int) -> None:
    one = model()
    values = []
    for hidden in hidden_documents():
        tokens = hidden.document.tokens.tolist()
        for place in range(len(tokens)):
            window = window_of(place, len(tokens), length)
            within = place - window.start
            values.append(nats(one, [tokens[t] for t in window], [within], within))
    found, scored = pseudo_perplexity(one, hidden_documents(), length)
    assert scored == sum(LENGTHS) == len(values)
    assert found == pytest.approx(math.exp(sum(values) / len(values)), rel=1e-4)


def test_pseudo_perplexity_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens are those with the lowest numbers, whatever the order of the documents."""
    monkeypatch.setattr(module, "SCORED_ALONE", 20)
    one, hidden = model(), hidden_documents()
    found = pseudo_perplexity(one, hidden, 16)
    assert found[1] == 20
    assert pseudo_perplexity(one, hidden[::-1], 16)[0] == pytest.approx(found[0], rel=1e-6)
    monkeypatch.setattr(module, "SCORED_ALONE", 1000)
    assert pseudo_perplexity(one, hidden, 16)[0] != pytest.approx(found[0], rel=1e-3)


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_grouping_changes_nothing(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, hidden = model(mixer).train(), hidden_documents()
    together = [document.bits for document in masked_document_bits(one, hidden, 16)]
    alone = [masked_document_bits(one, [document], 16)[0].bits for document in hidden]
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 2 * 16 * 256)
    pairs = [document.bits for document in masked_document_bits(one, hidden, 16)]
    assert together == pytest.approx(alone, rel=1e-5)
    assert together == pytest.approx(pairs, rel=1e-5)
    assert one.training


def test_what_is_hidden_follows_from_the_document_alone() -> None:
    first = hidden_documents()
    for hidden, again in zip(first, hide(documents()[::-1], byte_tokenizer())[::-1], strict=True):
        assert np.array_equal(hidden.hidden, again.hidden)
    special = HeldOutDocument("text", np.array([255, 97, 254, 253], dtype=np.uint8), b"....")
    assert hide([special], byte_tokenizer())[0].hidden.tolist() == [False, True, False, False]


def tokenizer_of(*words: str, byte_level: bool) -> Any:
    """Words, single characters and, for the byte level, all bytes."""
    base = byte_tokenizer().get_vocab() if byte_level else {}
    vocabulary = {**base, **{word: len(base) + index for index, word in enumerate([*words, "?"])}}
    if byte_level:
        merges = [("a", "b")]
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="?", mask_token="?")


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (byte_tokenizer(), "aé日b", [1, 2, 3, 4, 5, 6, 7]),
        (tokenizer_of("ab", byte_level=True), "abéab", [2, 3, 4, 6]),
        (tokenizer_of("ab", "日", byte_level=False), "ab  日 ab ", [2, 7, 11]),
    ],
)
def test_the_bytes_of_tokens(tokenizer: Any, text: str, expected: list[int]) -> None:
    content = text.encode()
    document = HeldOutDocument("text", encode(tokenizer, [content])[0], content)
    assert token_ends(document, tokenizer).tolist() == expected
    hidden = hide([document], tokenizer)[0]
    bounds = [0, *expected]
    spans = [range(bounds[t], bounds[t + 1]) for t in np.flatnonzero(hidden.hidden)]
    assert np.flatnonzero(hidden.hidden_bytes).tolist() == [byte for span in spans for byte in span]


def test_a_filled_text() -> None:
    """The head is made to always fill in an "e"; what is visible stays."""
    one = model()
    one.head.register_forward_hook(lambda head, inputs, logits: logits.index_fill(-1, torch.tensor(ord("e")), 1e3))
    content = b"tea bed"
    hidden = np.array([False, True, False, False, True, True, False])
    document = HeldOutDocument("text", np.frombuffer(content, dtype=np.uint8), content)
    told = HiddenDocument(document, hidden, hidden, hidden)
    assert filled_text(one, told, 64, byte_tokenizer()) == "t⟦e⟧a ⟦ee|be⟧d"
    assert filled_text(one, told, 5, byte_tokenizer()) == "t⟦e⟧a ⟦e|b⟧"


def witten_bell(pairs: list[tuple[Any, int]], context: Any, byte: int, lower: float) -> float:
    counts: dict[Any, Counter[int]] = defaultdict(Counter)
    for seen, b in pairs:
        counts[seen][b] += 1
    total, types = sum(counts[context].values()), len(counts[context])
    return (counts[context][byte] + types * lower) / (total + types) if total else lower


@pytest.mark.parametrize("neighbours", [False, True])
def test_baselines_against_dictionaries(neighbours: bool) -> None:
    draw = np.random.default_rng(1)
    data = draw.integers(97, 103, size=400, dtype=np.uint8)
    content = bytes(draw.integers(97, 104, size=40, dtype=np.uint8))
    hidden = draw.random(40) < 0.4
    hidden[[0, 39]] = True
    document = HeldOutDocument("text", np.frombuffer(content, dtype=np.uint8), content)
    triples = [tuple(map(int, data[i : i + 3])) for i in range(len(data) - 2)]
    bits = 0.0
    for place in np.flatnonzero(hidden):
        b = content[place]
        left = content[place - 1] if place > 0 and not hidden[place - 1] else None
        right = content[place + 1] if place < 39 and not hidden[place + 1] else None
        p = witten_bell([((), m) for _, m, _ in triples], (), b, 1 / 256)
        if neighbours:
            of_left = witten_bell([(l, m) for l, m, _ in triples], left, b, p)  # noqa: E741
            of_right = witten_bell([(r, m) for _, m, r in triples], right, b, p)
            mean = (of_left + of_right) / 2
            both = witten_bell([((l, r), m) for l, m, r in triples], (left, right), b, mean)  # noqa: E741
            p = {(True, True): both, (True, False): of_left, (False, True): of_right}.get(
                (left is not None, right is not None), p
            )
        bits -= math.log2(p)
    [found] = hidden_byte_bits(
        ByteNeighbours(data), [HiddenDocument(document, hidden, hidden, hidden)], neighbours=neighbours
    )
    assert found.num_bytes == hidden.sum()
    assert found.bits == pytest.approx(bits, rel=1e-9)
