"""Tokenizers: bytes by default, any other by its folder or its Hugging Face name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

BYTES = "bytes"
END, PADDING, MASK = "<|endoftext|>", "<|padding|>", "<|mask|>"
# These bytes never occur in UTF-8: special tokens can have their ids, and 256 ids are enough.
SPECIAL = {0xFF: END, 0xFE: PADDING, 0xFD: MASK}


def load_tokenizer(name: str) -> Any:
    """The tokenizer called `name`: "bytes", a folder, or a Hugging Face name.

    Raises:
        ValueError: it cannot be loaded, or it has no token to end a document with.
    """
    if name == BYTES:
        return byte_tokenizer()
    try:
        # With False said, transformers does not stop to ask when the folder also holds a model's code.
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as problem:  # a dozen kinds: wrong name, no network, damaged file
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise ValueError(f"tokenizer '{name}' is not '{BYTES}' and cannot be loaded: {reason}") from problem
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer '{name}' has no eos_token, which is needed to separate documents")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Ids are byte values; 253, 254, 255 are mask, padding, end. Plain transformers loads what it saves.

    Text that spells a special token stays text, so that every string survives the round trip.
    """
    characters = _byte_characters()
    vocabulary = {SPECIAL.get(byte, characters[byte]): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PADDING,
        mask_token=MASK,
        padding_side="left",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: Any, documents: Sequence[bytes]) -> list[np.ndarray]:
    """The ids of each document, without special tokens.

    Args:
        documents: UTF-8.

    Returns:
        One array [tokens] for each document.
    """
    if fingerprint(tokenizer) == _byte_fingerprint():
        return [np.frombuffer(document, dtype=np.uint8) for document in documents]
    if not documents:
        return []
    texts = [document.decode("utf-8") for document in documents]
    # Not verbose: that a document is longer than a sequence is no fault, they are cut later.
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [np.array(ids, dtype=id_type(tokenizer)) for ids in encoded]


def id_type(tokenizer: Any) -> type[np.unsignedinteger]:
    """The smallest array type that holds every id."""
    size = len(tokenizer)
    return np.uint8 if size <= 1 << 8 else np.uint16 if size <= 1 << 16 else np.uint32


def fingerprint(tokenizer: Any) -> str:
    """A hash of how the tokenizer turns text into ids, and of the id that ends a document."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    mapping = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    kind = type(tokenizer).__name__ if backend is None else ""
    facts = (kind, mapping, tokenizer.eos_token_id, tokenizer.split_special_tokens)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


@cache
def _byte_fingerprint() -> str:
    return fingerprint(byte_tokenizer())


def _byte_characters() -> list[str]:
    """The printable stand-in of each byte in a ByteLevel vocabulary: itself, or the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters, next_free = [], 0x100
    for byte in range(256):
        characters.append(chr(byte) if byte in printable else chr(next_free))
        next_free += byte not in printable
    return characters
