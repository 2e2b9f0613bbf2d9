"""The byte tokenizer and other tokenizers by folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from paribus.data.tokenizers import byte_tokenizer, encode, fingerprint, id_type, load_tokenizer

TEXTS = ["", "plain", " é 水 🎉 \x00\x01\r\n\t  two  spaces .,!? don't", "<|endoftext|> <|padding|><|mask|>"]
BYTES = byte_tokenizer()


def words(folder: Path, eos_token: str | None = "<end>", size: int = 300) -> str:
    """Saves a word-level tokenizer; gives its folder."""
    vocabulary = {"<end>": 0, "<unknown>": 1, **{f"w{number}": number for number in range(2, size)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos_token).save_pretrained(folder)
    return str(folder)


def check_round_trip(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_ids_are_bytes() -> None:
    assert len(BYTES) == BYTES.vocab_size == 256
    assert (BYTES.eos_token_id, BYTES.bos_token_id, BYTES.pad_token_id, BYTES.mask_token_id) == (255, 255, 254, 253)
    assert BYTES.decode([104, 105, 255, 254], skip_special_tokens=True) == "hi"
    assert BYTES(["a", "abc"], padding=True)["input_ids"] == [[254, 254, 97], [97, 98, 99]]


@settings(deadline=None, max_examples=50, derandomize=True, database=None)
@given(st.text())
def test_any_text_survives(text: str) -> None:
    check_round_trip(BYTES, text)


def test_plain_transformers_loads_what_is_saved(tmp_path: Path) -> None:
    BYTES.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        check_round_trip(loaded, text)
    assert loaded.padding_side == "left" and len(loaded) == 256 and loaded.eos_token_id == 255
    assert fingerprint(loaded) == fingerprint(BYTES) == fingerprint(load_tokenizer(str(tmp_path)))


def test_encode_gives_what_the_tokenizer_gives(tmp_path: Path) -> None:
    documents = [text.encode() for text in TEXTS]
    for ids, text in zip(encode(BYTES, documents), TEXTS, strict=True):
        assert ids.dtype == np.uint8 and ids.tolist() == BYTES(text)["input_ids"]
    tokenizer = load_tokenizer(words(tmp_path))
    (ids,) = encode(tokenizer, [b"w5 w7 other w299"])
    assert ids.dtype == np.uint16 and ids.tolist() == [5, 7, 1, 299]
    assert encode(tokenizer, []) == []


def test_fingerprints_differ(tmp_path: Path) -> None:
    names = [words(tmp_path / str(size), size=size) for size in (300, 301, 70_000)]
    tokenizers = [BYTES, *map(load_tokenizer, names)]
    assert len({fingerprint(tokenizer) for tokenizer in tokenizers}) == 4
    assert [id_type(tokenizer) for tokenizer in tokenizers] == [np.uint8, np.uint16, np.uint16, np.uint32]


def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no eos_token"):
        load_tokenizer(words(tmp_path, eos_token=None))
    with pytest.raises(ValueError, match=r"tokenizer '.*/missing' is not 'bytes' and cannot be loaded: ") as caught:
        load_tokenizer(str(tmp_path / "missing"))
    assert "\n" not in str(caught.value)
