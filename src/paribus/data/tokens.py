"""A split as one stream of token ids: the documents one after another, each closed by the end-of-text id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cache import prepared_folder
from .corpus import Corpus
from .tokenizers import encode, fingerprint, id_type

DOCUMENTS_AT_ONCE = 1_000


@dataclass(frozen=True)
class TokenStream:
    """Memory-mapped ids [tokens], and where each document begins and the last one ends: [documents + 1]."""

    ids: np.ndarray
    offsets: np.ndarray


def tokenized(corpus: Corpus, split: str, tokenizer: Any, place: Path) -> TokenStream:
    """The token stream of a split, made once for each content and tokenizer, and kept in the folder `place`.

    Raises:
        ValueError: unknown split.
    """
    documents = corpus.documents(split)

    def write(into: Path) -> dict[str, Any]:
        lengths = []
        end = np.array([tokenizer.eos_token_id], dtype=id_type(tokenizer))
        with (into / "ids.bin").open("wb") as file:
            for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
                for ids in encode(tokenizer, documents[start : start + DOCUMENTS_AT_ONCE]):
                    file.write(np.concatenate([ids, end]).tobytes())
                    lengths.append(len(ids) + 1)
        np.save(into / "offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
        return {"corpus": corpus.name, "split": split, "tokens": sum(lengths)}

    names = (
        corpus.folder.name.rpartition("-")[0],
        split,
        corpus.manifest_hash[:12],
        fingerprint(tokenizer)[:12],
    )
    folder = place / "-".join(names)
    prepared_folder(folder, write)
    ids = np.memmap(folder / "ids.bin", dtype=id_type(tokenizer), mode="r")
    return TokenStream(ids, np.load(folder / "offsets.npy"))
