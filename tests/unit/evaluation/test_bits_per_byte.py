"""Bits per byte against a count token by token; the n-gram baseline against one made of dictionaries."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from paribus.data.batches import HeldOutDocument
from paribus.evaluation import bits_per_byte as module
from paribus.evaluation.bits_per_byte import DocumentBits, bits_per_byte, document_bits
from paribus.evaluation.cost import decoding_state_bytes, peak_memory_bytes, training_flops
from paribus.evaluation.ngram import ByteNGram, ngram_document_bits
from paribus.nn.backbone import parameter_count
from paribus.nn.initialization import initialize
from paribus.nn.model_settings import read_model_config
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

START = 255
LENGTHS = (1, 7, 8, 9, 16, 17, 40, 23)


def model(mixer: str = "attention", **sizes: int) -> ParibusForCausalLM:
    block = {"mixer": {"name": mixer}, "channel": {"name": "glu"}}
    found = ParibusForCausalLM(
        read_model_config({"hidden_size": 16, "num_hidden_layers": 2, "blocks": {"main": block}, **sizes})
    )
    initialize(found, seed=0)
    torch.nn.init.normal_(found.head.weight, std=0.5)  # so that tokens are not all alike
    return found


def documents(seed: int = 0) -> list[HeldOutDocument]:
    draw = np.random.default_rng(seed)
    contents = [bytes(draw.integers(97, 123, size=length, dtype=np.uint8)) for length in LENGTHS]
    return [HeldOutDocument("text", np.frombuffer(content, dtype=np.uint8), content) for content in contents]


@torch.no_grad()
def slow_bits(model: ParibusForCausalLM, document: HeldOutDocument, window: int) -> tuple[float, int]:
    """One prediction at a time, each from the tokens of its own window; and how many there were."""
    tokens = [START, *document.tokens.tolist()]
    bits, predicted = 0.0, 0
    for position in range(1, len(tokens)):
        begin = (position - 1) // window * window
        logits = model(input_ids=torch.tensor([tokens[begin:position]])).logits[0, -1].double()
        bits -= torch.log_softmax(logits, -1)[tokens[position]].item() / math.log(2)
        predicted += 1
    return bits, predicted


@pytest.mark.parametrize("mixer", ["attention", "gla"])
@pytest.mark.parametrize("window", [1, 8, 64])
def test_every_byte_is_predicted_once_from_its_own_window(mixer: str, window: int) -> None:
    one = model(mixer)
    found = document_bits(one, documents(), window, START)
    for document, measured in zip(documents(), found, strict=True):
        bits, predicted = slow_bits(one, document, window)
        assert predicted == len(document.content) == measured.num_bytes
        assert measured.bits == pytest.approx(bits, rel=1e-4)


@pytest.mark.parametrize("mixer", ["attention", "gla", "tnn", "mlp_mixer"])
def test_the_grouping_changes_nothing(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = model(mixer)
    together = [document.bits for document in document_bits(one, documents(), 16, START)]
    alone = [document_bits(one, [document], 16, START)[0].bits for document in documents()]
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 2 * 16 * 256)
    pairs = [document.bits for document in document_bits(one, documents(), 16, START)]
    assert together == pytest.approx(alone, rel=1e-5)
    assert together == pytest.approx(pairs, rel=1e-5)


def test_the_model_stays_in_its_mode() -> None:
    one = model().train()
    document_bits(one, documents(), 16, START)
    assert one.training
    document_bits(one.eval(), documents(), 16, START)
    assert not one.training


def test_a_uniform_model_needs_eight_bits_a_byte() -> None:
    one = model()
    torch.nn.init.zeros_(one.head.weight)
    found = document_bits(one, documents(), 16, START)
    assert bits_per_byte(found) == pytest.approx(8)
    assert [document.bits for document in found] == pytest.approx([8 * length for length in LENGTHS])


def test_bits_per_byte_weighs_by_bytes() -> None:
    assert bits_per_byte([DocumentBits("a", 10, 1), DocumentBits("b", 20, 9)]) == 3


class SlowNGram:
    """The formula of `ByteNGram`, with dictionaries, one byte at a time."""

    def __init__(self, order: int, data: bytes) -> None:
        self.order = order
        self.followers: dict[bytes, Counter[int]] = defaultdict(Counter)
        for length in range(order):
            for end in range(length, len(data)):
                self.followers[data[end - length : end]][data[end]] += 1

    def probability(self, context: bytes, byte: int) -> float:
        lower = 1 / 256 if not context else self.probability(context[1:], byte)
        seen = self.followers.get(context)
        if seen is None:
            return lower
        return (seen[byte] + len(seen) * lower) / (seen.total() + len(seen))

    def bits(self, document: bytes) -> float:
        contexts = [document[max(0, end - self.order + 1) : end] for end in range(len(document))]
        return -sum(math.log2(self.probability(c, byte)) for c, byte in zip(contexts, document, strict=True))


def draw_bytes(seed: int, size: int) -> bytes:
    return bytes(np.random.default_rng(seed).choice(np.frombuffer(b"aab\xff\x00z", dtype=np.uint8), size=size))


@pytest.mark.parametrize("order", range(1, 9))
def test_ngrams_are_those_of_dictionaries(order: int) -> None:
    data = draw_bytes(0, 400)
    fast, slow = ByteNGram(order, np.frombuffer(data, dtype=np.uint8)), SlowNGram(order, data)
    for document in (draw_bytes(1, 60), b"never seen", b"a", data[:50]):
        assert fast.bits(np.frombuffer(document, dtype=np.uint8)) == pytest.approx(slow.bits(document))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one(order: int) -> None:
    fast = ByteNGram(order, np.frombuffer(draw_bytes(0, 300), dtype=np.uint8))
    for context in (b"", b"a", b"ab\xffa", b"new!", b"\x00\x00a"):
        before = fast.bits(np.frombuffer(context, dtype=np.uint8))
        after = [fast.bits(np.frombuffer(context + bytes([byte]), dtype=np.uint8)) for byte in range(256)]
        assert sum(2.0 ** (before - bits) for bits in after) == pytest.approx(1)


def test_ngram_bits_of_documents() -> None:
    data = np.frombuffer(draw_bytes(0, 300), dtype=np.uint8)
    found = ngram_document_bits(2, data, documents())
    assert [document.num_bytes for document in found] == list(LENGTHS)
    assert found[3].bits == ByteNGram(2, data).bits(documents()[3].tokens)


def test_cost() -> None:
    one = model(max_position_embeddings=1024)
    matrices = parameter_count(one) - sum(p.numel() for n, p in one.named_parameters() if p.dim() == 1)
    matrices -= one.model.embedding.table.weight.numel()
    attention = 2 * 2 * 2 * 64 * 16  # 2 layers, QKᵀ and PV, multiply and add, 64 tokens, width 16
    row = torch.zeros(1, 64, dtype=torch.long)
    flops = training_flops(one, {"input_ids": row, "targets": row}, {"return_logits": False}) / 64
    assert 3 * (2 * matrices + attention) <= flops <= 1.25 * 3 * (2 * matrices + attention)
    assert all(parameter.grad is None for parameter in one.parameters())
    assert decoding_state_bytes(one).keys() == {"256", "1024"}
    sizes = decoding_state_bytes(one)
    assert sizes["1024"] / sizes["256"] == pytest.approx(4, rel=0.05)
    assert peak_memory_bytes("cpu") > 10_000_000
